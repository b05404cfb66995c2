"""Configurations from a hostile user: a clear refusal, or a run that completes. ``make faults``.

Every example takes a tiny run on the digits and changes it in one to three places: another choice
of a group, an option that is there or almost there, a value of another type or far out of range.
The refusal must be a ConfigError of one line; anything else that is raised, and anything that takes
more than a minute, is a fault. What is accepted is run: it completes, or its work fails with a
RunError.
"""

import resource
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tiny import CHECKOUT, LABELS, TINY, config, jobs

from pai.errors import ConfigError, RunError
from pai.plan import prepare
from pai.runner import run

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]
EXAMPLES, PATIENCE_S = 600, 60
GROUPS = ("dataset", "model", "warmup", "schedule", "training", "logger", "scorer")
CHOICES = {
    group: sorted(path.stem for path in (CHECKOUT / "conf" / group).glob("*.yaml"))
    for group in GROUPS
}
SEEN: Counter[str] = Counter()
FAULTS: list[str] = []


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all values."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield f"{prefix}{key}"
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def options() -> list[str]:
    """Return the options of every choice of every group, and the top-level ones."""
    found = set(leaves(config(*TINY)))
    for group, names in CHOICES.items():
        for name in names:
            node = OmegaConf.load(CHECKOUT / "conf" / group / f"{name}.yaml")
            plain: Any = OmegaConf.to_container(node)
            found |= {f"{group}.{key}" for key in leaves(plain) if "defaults" not in key}
    return sorted(found - {"logger.project"})


NUMBERS = st.one_of(
    st.integers(-3, 12), st.integers(-(2**70), 2**70), st.floats(), st.floats(0, 1),
    st.sampled_from([0, -1, 1e-300, 1e300, "nan", "inf", "-inf", "1e400", 2**31, 2**63]),
).map(str)  # fmt: skip
WORDS = st.one_of(
    st.sampled_from([
        "null", "true", "false", "abc", "''", "[]", "[1,2]", "{}", "{a: 1}", "[[1],[2]]", "global",
        "layer", "cpu", "cuda:99", "mps", "../..", "/etc/passwd", "/dev/null", "os.system",
        "pai.errors.ConfigError", "builtins.eval", "${seed}", "${nowhere}", "${oc.env:HOME}", "???",
        "'${oc.env:NOT_THERE}'", "float32", "bfloat16",
    ]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="'\\\\"), max_size=8)
    .map(lambda text: f"'{text}'"),
)  # fmt: skip


@st.composite
def keys(draw: st.DrawFn) -> str:
    """Draw an option, now and then misspelt or one that is not there."""
    key = draw(st.sampled_from(options()))
    kind = draw(st.integers(0, 11))
    if kind == 0:
        return "+" + key + draw(st.sampled_from([".typo", "s", "_"]))
    if kind == 1:
        return "~" + key
    if kind == 2:
        return "++" + key
    return key


SENSIBLE = (
    "sparsity=0.3", "sparsity=0.98", "scope=layer", "scope=erk", "seed=7", "scorer=fts",
    "scorer=snip", "scorer=random", "warmup=none", "warmup=bn_exact", "schedule=linear",
    "training.epochs=1", "training.batch_size=7", "training.mixup_alpha=0.5",
    "training.label_smoothing=0.1", "scoring.samples_per_class=3", "include_classifier=true",
    "sanity=shuffle", "model.width=2", "dataset.crop_padding=1", "scoring.save_scores=true",
)  # fmt: skip


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """Draw what is changed: in a third of all examples to what makes sense, else to anything."""
    changed = []
    if draw(st.integers(0, 2)) == 0:
        return draw(st.lists(st.sampled_from(SENSIBLE), min_size=1, max_size=3, unique=True))
    for group in draw(st.lists(st.sampled_from(GROUPS), max_size=1)):
        changed.append(f"{group}={draw(st.sampled_from([*CHOICES[group], 'nothing']))}")
    for key in draw(st.lists(keys(), min_size=0 if changed else 1, max_size=3)):
        value = draw(st.one_of(NUMBERS, WORDS))
        changed.append(key if key.startswith("~") else f"{key}={value}")
    return changed


def give_up(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {PATIENCE_S} seconds")


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Bound memory and time: what asks for more is to be refused, not to take the machine down."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (24 * 2**30, before[1]))
    handler = signal.signal(signal.SIGALRM, give_up)
    yield
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(changed=overrides())
def test_a_configuration_is_refused_in_a_line_or_runs(
    changed: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assume(not any("download" in text for text in changed))
    folder = tmp_path_factory.mktemp("run")
    signal.alarm(PATIENCE_S)
    try:
        (job,) = jobs(*TINY, "training.epochs=0", f"hydra.run.dir={folder}", *changed)
        plan = prepare(job.config)
        seen = "refused while composing"
        if plan.training.epochs > 3:
            SEEN["accepted, too long to run"] += 1
            return
        run(plan, Path(folder), LABELS)
        seen = "completed"
    except ConfigError as error:
        seen = "refused"
        assert len(str(error).splitlines()) == 1, str(error)
        assert str(error).strip()
    except RunError as error:
        seen = "failed in the work"
        assert len(str(error).splitlines()) == 1, str(error)
    except Exception as error:  # noqa: BLE001  (all are collected, then reported together)
        seen = "fault"
        FAULTS.append(f"{' '.join(changed)}\n    {type(error).__name__}: {str(error)[:300]}")
    finally:
        signal.alarm(0)
    SEEN[seen] += 1


def test_what_was_seen() -> None:
    print("\n", dict(SEEN))
    assert not FAULTS, "\n".join(FAULTS)
    assert SEEN["refused"] >= 100
    assert SEEN["completed"] >= 50
