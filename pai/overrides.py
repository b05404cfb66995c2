"""The overrides of a command line: parsed one by one, and what is wrong with one named."""

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from pai.errors import ConfigError, first_line
from pai.library import available
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


def check_sweeps(overrides: list[Override], composed: DictConfig, *, multirun: bool) -> None:
    """Refuse several values without ``-m``, and a directory that the command would not use.

    Args:
        overrides: of the command line.
        composed: the configuration without those that have several values.
        multirun: whether there is ``-m``.
    """
    idle, used = ("run", "sweep") if multirun else ("sweep", "run")
    given = {override.key_or_group for override in overrides}
    if f"hydra.{idle}.dir" in given and f"hydra.{used}.dir" not in given:
        says = "with" if multirun else "without"
        raise ConfigError(f"hydra.{idle}.dir: has no effect {says} -m; use hydra.{used}.dir")
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            key = override.get_key_element()
            lists = _is_list(composed, key.lstrip("+"))
            raise ConfigError(
                f"{key}: {override.get_value_string()!r} is several values; add -m to sweep over "
                f"them{', or brackets to make them a list' if lists else ''}"
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
        value = None if override.is_sweep_override() else override.value()
        if chosen and isinstance(value, bool | int | float):
            raise ConfigError(
                f"{override.key_or_group}: {override.get_value_string()} is not a choice; choices "
                f"are names (available: {', '.join(available(override.key_or_group))})"
            )
        if chosen and isinstance(value, list) and len(value) > 1 and _names(value):
            raise ConfigError(
                f"{override.key_or_group}: {override.get_value_string()} is {len(value)} choices, "
                f"and a run needs one; -m {override.key_or_group}={','.join(value)} sweeps over "
                f"them"
            )
        named = chosen or override.key_or_group.startswith(("experiment", "hydra/"))
        if named and isinstance(value, list) and not _names(value):
            raise ConfigError(
                f"{override.key_or_group}: {override.get_value_string()} is not a choice; choices "
                f"are names"
            )


def _names(items: list[object]) -> bool:
    return all(isinstance(item, str) for item in items)


def _is_list(composed: DictConfig, key: str) -> bool:
    return OmegaConf.is_list(OmegaConf.select(composed, key, throw_on_resolution_failure=False))


def sweep_of(key: str, value: object, composed: DictConfig) -> str:
    """Return the override for an entry of ``hydra.sweeper.params``.

    Raises:
        ConfigError: it is a list where several values are meant, which are a text with commas.
    """
    if isinstance(value, list) and not _is_list(composed, key):
        several = ",".join(str(item) for item in value)
        raise ConfigError(
            f"hydra.sweeper.params.{key}: {value} is a list; several values are a comma-separated "
            f"text: {key}: {several}"
        )
    return f"{key}={value}"


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


def sets_a_number(override: Override) -> bool:
    """Return whether an override changes one value, to a number."""
    return (
        override.type == OverrideType.CHANGE
        and override.package is None
        and not override.is_hydra_override()
        and type(override.value()) in (int, float)
    )


def quoted(text: str) -> str:
    """Return ``text`` as a value in an override, whatever characters it has."""
    return QuotedString(text, Quote.single).with_quotes()
