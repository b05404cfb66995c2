import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sweep_records import record, write
from tiny import LABELS, TINY, config, image_folder, jobs
from torch import nn

import pai
from pai.components import build
from pai.errors import ConfigError
from pai.library import available
from pai.output import SCORES_FILE
from pai.plan import prepare
from pai.prunable import prunable_parameters
from pai.runner import run
from pai.schema import GROUPS, Scoring, Seeds, TopLevel, check_config

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()


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


def test_the_python_example_of_the_readme_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("README.md", "python")
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert sum(int(keep.sum()) for keep in names["mask"].values()) == 640
    assert (names["model"][0].weight != 0).sum() == 640


def test_the_python_example_of_tasks_runs_as_written() -> None:
    (example,) = blocks("docs/tasks.md", "python")
    names: dict[str, Any] = {}
    exec(compile(example, "docs/tasks.md", "exec"), names)
    kept = sum(int(keep.sum()) for keep in names["mask"].values())
    total = sum(keep.numel() for keep in names["mask"].values())
    assert kept == round(0.1 * total) > 0


def test_the_python_example_of_tables_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [record(scorer, seed=seed) for scorer in ("snip", "hts") for seed in (0, 1)]
    write(tmp_path / "runs" / "smoke_table", *runs)
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("docs/tables.md", "python")
    names: dict[str, Any] = {}
    exec(compile(example, "docs/tables.md", "exec"), names)
    assert "| `hts, bn_stats` | **50.0 ± 0.0** (n=2) |" in capsys.readouterr().out
    assert len(names["runs"]) == 4
    assert {"digest", "setting", "metrics.test_accuracy"} <= set(names["runs"])


def test_the_experiment_of_tables_composes_as_written(tmp_path: Path) -> None:
    (text,) = blocks("docs/tables.md", "yaml")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    found = jobs("-m", "+experiment=mine", "warmup=none", "seed=0", f"--config-dir={tmp_path}")
    chosen = {(job.config["dataset"]["num_classes"], job.config["model"]["depth"]) for job in found}
    assert chosen == {(100, 34)}
    assert len(found) == 3 * 5  # its own scorers, the grid's sparsities


def commands() -> list[str]:
    """Return the command lines of `pai` in blocks and in the text that name no placeholder."""
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")
    found = re.findall(r"^ *(pai .*?) *(?:# .*)?$", text, re.MULTILINE)
    found += [" ".join(code.split()) for code in re.findall(r"`(pai [^`]*)`", text)]
    apart = re.compile(r"NAME|--config-dir|mine|cubic|--help|--version|pai cache|\.\.\.|\$")
    return [line for line in found if not apart.search(line)]


def first_job(command: str, replaced: dict[str, str]) -> list[str]:
    """Return the arguments of the first job of a command line of the documentation."""
    chosen = []
    for word in shlex.split(command)[1:]:
        key, equals, value = word.partition("=")
        value = re.sub(r"^range\((\d+),.*\)$|^([^,]*),.*$", r"\1\2", replaced.get(value, value))
        chosen.append(key + equals + value)
    sweep = any(word in ("-m", "--multirun") for word in chosen)
    options = ("-m", "--dry-run")
    none = ["hydra.sweeper.params=null"] if sweep else []
    kept = [word for word in chosen if not word.startswith("hydra.sweep.dir=")]
    return [word for word in kept if word not in options] + none


def test_every_command_of_the_documentation_composes(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be " * 500)
    text = str(tmp_path / "text.txt")
    images = str(image_folder(tmp_path / "images"))
    replaced = {"DIR": images, "FILE": text, "tinyshakespeare.txt.xz": text}
    assert len(commands()) > 25
    seen: list[Any] = []
    for line in commands():
        (job,) = jobs(*first_job(line, replaced))
        check_config(job.config)
        for group in GROUPS:
            build(group, job.config[group])
        if (parts := (job.config["dataset"], job.config["model"])) not in seen:
            seen.append(parts)
            prepare(job.config)  # the network fits the data


def test_every_script_and_make_target_that_is_named_is_there() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"^([a-z-]+(?: [a-z$()%,-]+)*):.*$", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]*[a-z0-9])(?![\w<-])", text, re.MULTILINE))
    tables = re.findall(r"^((?:table|study)-[a-z0-9-]+):  ## ", MAKEFILE, re.MULTILINE)
    assert len(named) > 10
    assert named <= targets | set(tables)
    scripts = set(re.findall(r"\b((?:scripts|benchmarks)/[\w/]+\.(?:py|sh|yaml))", text))
    assert len(scripts) > 10
    assert {name for name in scripts if not (ROOT / name).exists()} == set()


def anchors(page: Path) -> set[str]:
    """Return the names that a page's headings have as targets of links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_relative_link_leads_to_a_file_and_a_heading() -> None:
    links = [
        (page, target, anchor)
        for page in PAGES
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text())
        if "://" not in target
    ]
    assert sum(anchor != "" for *_, anchor in links) > 5
    for page, target, anchor in links:
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}#{anchor}"


def test_every_choice_is_listed() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    listed = set(re.findall(r"[a-z_0-9.]+", " ".join(re.findall(r"`([^`]*)`", text))))
    for group in GROUPS:
        assert set(available(group)) <= listed, group
    keys = {f"scoring.{key}" for key in Scoring.model_fields}
    keys |= {f"seeds.{key}" for key in Seeds.model_fields}
    assert keys <= listed
    assert set(TopLevel.model_fields) - {*GROUPS, "scoring", "seeds"} <= listed
    assert SCORES_FILE in listed


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


@pytest.mark.parametrize(
    ("group", "name", "wrong"),
    [
        ("dataset", "stripes", {"per_class": 3}),
        ("schedule", "halving", {"rounds": 0}),
        ("warmup", "noise", {"num_batches": 0}),
    ],
)
def test_the_recipe_for_another_component_works_as_written(
    group: str, name: str, wrong: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = recipe(name)
    (tmp_path / f"recipe_{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PAI_TRUSTED_PACKAGES", f"recipe_{name}")
    node = yaml.safe_load(text.replace(f"my_package.{name}", f"recipe_{name}"))
    found = run(prepare(config(*TINY) | {group: node}), tmp_path / "run", LABELS)
    assert found["status"] == "completed"
    assert found["mask"]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    if group == "dataset":
        assert (found["data"]["train"], found["data"]["test"]) == (270, 30)
        assert found["metrics"]["test_accuracy"] > 0.5  # chance is a third
    if group == "warmup":
        assert found["warmup"]["batches"] == 10
    ((option, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{group}: {option} must be at least .*, got {value}"):
        prepare(config(*TINY) | {group: node | wrong})
    sys.modules.pop(f"recipe_{name}", None)


def test_the_public_names_are_importable_and_documented() -> None:
    for name in pai.__all__:
        assert getattr(pai, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pai.nothing  # noqa: B018


def test_a_release_has_one_version_and_one_date() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert (cited["version"], str(cited["date-released"])) == newest.groups()
    assert "dev" in pai.__version__ or pai.__version__ == newest[1]
