import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import config
from torch import nn

import pai
from pai.components import build
from pai.errors import ConfigError
from pai.library import available
from pai.plan import prepare
from pai.prunable import prunable_parameters
from pai.schema import GROUPS

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def recipe(name: str) -> tuple[str, str]:
    """Return the Python and the YAML block of CONTRIBUTING.md for the module ``name``."""
    numbered = zip(
        blocks("CONTRIBUTING.md", "python"), blocks("CONTRIBUTING.md", "yaml"), strict=True
    )
    (found,) = [(code, text) for code, text in numbered if f".{name}." in text]
    return found


def test_the_python_example_of_the_readme_runs_as_written() -> None:
    (example,) = blocks("README.md", "python")
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert sum(int(keep.sum()) for keep in names["mask"].values()) == 640
    assert (names["model"][0].weight != 0).sum() == 640


def test_every_relative_link_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        if "://" not in target
    ]
    assert len(links) >= 3
    for page, target in links:
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_choice_is_listed() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    listed = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`]*)`", text))))
    for group in GROUPS:
        assert set(available(group)) <= listed, group


def test_the_recipe_for_a_scorer_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = recipe("cubic")
    (tmp_path / "recipe_scorer.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PAI_TRUSTED_PACKAGES", "recipe_scorer")
    node = yaml.safe_load(text.replace("pai.scorers.cubic", "recipe_scorer"))
    scorer = build("scorer", node | {"power": 2.0})
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    scores = scorer(model, [(torch.zeros(1, 3), torch.tensor([0]))])
    assert torch.equal(scores["0.weight"], model.get_parameter("0.weight").detach().abs() ** 2)
    with pytest.raises(ValueError, match="power must be positive"):
        build("scorer", node | {"power": 0.0})
    sys.modules.pop("recipe_scorer", None)


def test_the_recipe_for_a_model_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = recipe("mlp")
    (tmp_path / "recipe_model.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PAI_TRUSTED_PACKAGES", "recipe_model")
    whole = config() | {"model": yaml.safe_load(text.replace("pai.models.mlp", "recipe_model"))}
    whole["model"]["width"] = 7
    model = prepare(whole).build_model()
    assert {name: weight.shape for name, weight in prunable_parameters(model).items()} == {
        "1.weight": (7, 64)
    }
    whole["model"]["width"] = 0
    with pytest.raises(ConfigError, match="model: width must be at least 1, got 0"):
        prepare(whole)
    sys.modules.pop("recipe_model", None)


def test_the_public_names_are_importable_and_documented() -> None:
    for name in pai.__all__:
        assert getattr(pai, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pai.nothing  # noqa: B018
