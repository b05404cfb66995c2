"""The overrides of a command line: parsed one by one, and what is wrong with one named."""

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException

from pai.errors import ConfigError, first_line
from pai.schema import GROUPS
from pai.trust import check_search_path


def parse(overrides: list[str]) -> list[Override]:
    """Parse overrides.

    Raises:
        ConfigError: one has no form that Hydra knows.
    """
    parsed = []
    for override in overrides:
        try:
            parsed += OverridesParser.create(
                GlobalHydra.instance().config_loader()
            ).parse_overrides([override])
        except (OverrideParseException, HydraException) as error:
            raise ConfigError(
                f"{override!r} cannot be parsed; overrides look like key=value, with quotes "
                f"around values that contain spaces, commas or ~ ({first_line(error)})"
            ) from error
    return parsed


def check_sweeps(overrides: list[Override], *, multirun: bool) -> None:
    """Refuse several values without ``-m``, and a directory that the command would not use."""
    idle, used = ("run", "sweep") if multirun else ("sweep", "run")
    given = {override.key_or_group for override in overrides}
    if f"hydra.{idle}.dir" in given and f"hydra.{used}.dir" not in given:
        says = "with" if multirun else "without"
        raise ConfigError(f"hydra.{idle}.dir: has no effect {says} -m; use hydra.{used}.dir")
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            raise ConfigError(
                f"{override.get_key_element()}: {override.get_value_string()!r} is several values; "
                f"add -m to sweep over them, or brackets to make them a list"
            )


def check_choices(overrides: list[Override]) -> None:
    """Refuse choices that are none, and search paths that name packages."""
    for override in overrides:
        if override.key_or_group == "hydra.searchpath":
            if override.is_sweep_override():
                raise ConfigError("hydra.searchpath: is the same for all jobs; give one list")
            check_search_path(override.value())
        chosen = override.key_or_group in GROUPS and not override.is_delete()
        if chosen and override.value() is None:
            raise ConfigError(f"{override.key_or_group}: null is not a choice; a run needs one")
        named = chosen or override.key_or_group.startswith(("experiment", "hydra/"))
        value = override.value() if named and not override.is_sweep_override() else None
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise ConfigError(
                f"{override.key_or_group}: {override.get_value_string()} is not a choice; choices "
                f"are names"
            )


def check_discrete(overrides: list[Override]) -> None:
    """Refuse continuous ranges."""
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.get_key_element()}: {override.get_value_string()!r} is a continuous "
                f"range; list the values, or choose a sweeper that searches"
            )


def settings_of(override: Override) -> list[str]:
    """Return one override for each value; an empty one stands for a continuous range."""
    if not override.is_sweep_override():
        return [f"{override.get_key_element()}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        return [""]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def quoted(text: str) -> str:
    """Return ``text`` as a value in an override, whatever characters it has."""
    return QuotedString(text, Quote.single).with_quotes()
