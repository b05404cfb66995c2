"""What is known to be impossible before a run directory is made."""

from pathlib import Path

import pytest
from tiny import TINY, check, command, fitting

from pai.errors import ConfigError

UNSUPPORTED = [
    ("phew", "vit_cifar", "walks from unit to unit are not defined for this network"),
    ("px", "vit_cifar", "the function of this one is no sum over paths"),
    ("phew", "gcn", "Phew is defined for inputs that are real numbers"),
    ("px", "gpt", "Px is defined for inputs that are real numbers"),
]


@pytest.mark.parametrize(("scorer", "model", "phrase"), UNSUPPORTED)
def test_a_scorer_that_is_not_defined_for_a_network_is_a_mistake_of_the_configuration(
    scorer: str, model: str, phrase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^scorer: .*{phrase}"):
        check(f"scorer={scorer}", f"model={model}", *fitting(model), "logger=none", "device=cpu")


@pytest.mark.parametrize("scorer", ["phew", "px"])
def test_a_scorer_that_is_defined_for_a_network_is_none(
    scorer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check(*TINY, f"scorer={scorer}")


def test_no_run_directory_is_made_for_it(tmp_path: Path) -> None:
    done = command("-m", "scorer=snip,px", "model=vit_cifar", "device=cpu", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("config error: scorer: px is for networks of affine layers")
    assert list(tmp_path.iterdir()) == []
