"""Every YAML file in the library composes through Hydra, passes the checks and builds."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import config, fitting, image_folder, jobs
from torch import nn

import pai
from pai.components import build
from pai.masking.schedule import Exponential, OneShot
from pai.paths import config_folder
from pai.plan import prepare
from pai.schema import GROUPS, check_config
from pai.scorers.base import Scorer
from pai.training.options import Training

FOLDER = config_folder()
FILES = sorted(FOLDER.rglob("*.yaml"))
CHOICES = [path.relative_to(FOLDER).as_posix() for path in FILES if path.parent != FOLDER]
PROMISED = {
    "scorer": (
        "none random magnitude grad_norm snip grasp synflow fd fp fts hd hp hts gd gp gts md mp "
        "mts iter_snip force ntk_sap prospr phew px"
    ),
    "model": (
        "resnet18 resnet20 resnet32 resnet34 resnet50 resnet56 vgg11 vgg13 vgg16 vgg19 "
        "resnet18_tiny vgg16_tiny vgg19_tiny resnet18_imagenet resnet34_imagenet resnet50_imagenet "
        "vit_cifar vit_cifar_bn vit_tiny vit_small timm gpt hf gcn gat"
    ),
    "warmup": "none bn_stats bn_exact bn_batches",
    "schedule": "oneshot exponential linear iter_snip force ntk_sap",
    "baseline": "none pretrain magnitude_after_training lottery_ticket",
    "sanity": "none shuffle reinit invert random_same_budget",
    "logger": "wandb none",
    "dataset": (
        "digits cifar10 cifar100 tinyimagenet imagenet imagefolder imagefolder_streamed text "
        "text_bytes text_bpe karate cora"
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "folder")


def overrides(choice: str, images: Path) -> list[str]:
    """Return what selects ``choice`` (``scorer/hts.yaml``) and makes the rest fit it."""
    group, _, name = choice.removesuffix(".yaml").rpartition("/")
    there = group in GROUPS or group.startswith("hydra/")
    chosen = [f"{group}={name}" if there else f"+{group}={name}"]
    if group == "dataset" and name.startswith("image"):
        chosen.append(f"dataset.root={images}")
    if group == "experiment" and name.startswith(
        ("imagenet", "study_collapse", "study_warmup", "evidence")
    ):
        chosen.append(f"dataset.root={images}")
    if name in ("study_warmup", "evidence_cpu"):
        chosen.append("dataset.train_per_class=null")
    if group == "model":
        chosen += fitting(name)
    return chosen


def sweep_values(choice: str) -> list[list[str]]:
    """Return overrides that take every value of a file's own sweep once, the others at their first.

    (The product of all values would be composed in the same way, only for much longer.)
    """
    content = yaml.safe_load((FOLDER / choice).read_text())
    params = content.get("hydra", {}).get("sweeper", {}).get("params", {})
    values = {key: [value.strip() for value in str(params[key]).split(",")] for key in params}
    if not values:  # an experiment may inherit a sweep
        return [["hydra.sweeper.params=null"] if choice.startswith("experiment/") else []]
    first = [f"{key}={found[0]}" for key, found in values.items()]
    rest = [[*first, f"{key}={value}"] for key, found in values.items() for value in found[1:]]
    return [[*chosen, "hydra.sweeper.params=null"] for chosen in (first, *rest)]


def check_parts(whole: dict[str, Any]) -> None:
    """Assert that every group of a configuration builds, and builds the right kind of thing."""
    check_config(whole)
    parts = {group: build(group, whole[group]) for group in GROUPS}
    assert parts["dataset"].check().smallest_class >= 1
    assert callable(parts["model"])
    assert isinstance(parts["scorer"], Scorer)
    assert callable(parts["warmup"])
    assert parts["schedule"].sparsities(0.9)[-1] == 0.9
    assert isinstance(parts["training"], Training)
    assert callable(parts["logger"].session)


def test_the_default_configuration_is_a_complete_run() -> None:
    check_parts(config())


def test_there_are_choices_in_every_group() -> None:
    assert {choice.split("/")[0] for choice in CHOICES} >= set(GROUPS)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_builds(choice: str, images: Path) -> None:
    for values in sweep_values(choice):
        check_parts(config(*overrides(choice, images), *values))


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith(("model/", "dataset/"))])
def test_every_model_and_dataset_fits_the_rest_of_the_default_run(
    choice: str, images: Path
) -> None:
    plan = prepare(config(*overrides(choice, images)))
    assert isinstance(plan.build_model(), nn.Module)
    assert plan.spec.smallest_class >= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_file_starts_with_a_comment_that_says_what_it_is(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")
    assert lines[0].removeprefix("# ").strip()


@pytest.mark.parametrize("group", PROMISED)
def test_all_promised_names_are_there(group: str) -> None:
    there = {path.stem for path in (FOLDER / group).glob("*.yaml")}
    assert set(PROMISED[group].split()) <= there


def test_available_scorers_are_the_files_in_the_folder() -> None:
    assert pai.available_scorers() == sorted(path.stem for path in FOLDER.glob("scorer/*.yaml"))


@pytest.mark.parametrize("name", pai.available_scorers())
def test_every_scorer_loads_from_python_as_on_the_command_line(name: str) -> None:
    loaded = pai.load_scorer(name)
    assert isinstance(loaded, Scorer)
    built = build("scorer", config(f"scorer={name}")["scorer"])
    assert type(loaded) is type(built)
    assert loaded.keeps_everything == (name == "none")
    options = {key: value for key, value in vars(loaded).items() if key != "saliency"}
    assert options == {key: value for key, value in vars(built).items() if key != "saliency"}


def test_options_of_load_scorer_replace_those_of_the_file() -> None:
    assert pai.load_scorer("hts", num_probes=7).estimator.num_probes == 7
    assert pai.load_scorer("hts").estimator.num_probes == 10
    with pytest.raises(ValueError, match=r"num_prob.*num_probes"):
        pai.load_scorer("hts", num_prob=7)
    with pytest.raises(ValueError, match=r"num_probes.*'many'"):
        pai.load_scorer("hts", num_probes="many")
    with pytest.raises(ValueError, match=r"'htss'.*did you mean 'hts'"):
        pai.load_scorer("htss")


def test_synflow_selects_its_hundred_exponential_rounds() -> None:
    assert build("schedule", config("scorer=synflow")["schedule"]) == Exponential(rounds=100)
    assert build("schedule", config("scorer=hts")["schedule"]) == OneShot()


@pytest.mark.parametrize("order", [1, -1])
def test_a_schedule_on_the_command_line_wins_over_the_scorers_own(order: int) -> None:
    chosen = ["scorer=synflow", "schedule=oneshot"][::order]
    assert build("schedule", config(*chosen)["schedule"]) == OneShot()


def test_the_folder_of_a_downloaded_dataset_can_be_set_by_a_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAI_DATA", "elsewhere")
    (job,) = jobs("dataset=cifar10")  # not config(), which remembers
    assert job.config["dataset"]["root"] == "elsewhere"


@pytest.mark.parametrize("name", [c.stem for c in FOLDER.glob("experiment/*_table.yaml")])
def test_a_table_sweeps_its_grid_and_leaves_synflow_its_schedule(name: str, images: Path) -> None:
    chosen = overrides(f"experiment/{name}.yaml", images)
    few = ["sparsity=0.9", "seed=0,42", "warmup=none"]
    made = jobs("-m", *chosen, "scorer=synflow,hts,none", *few)
    assert len({job.run_dir for job in made}) == len(made) == 6
    rounds = [job.config["schedule"].get("rounds", 1) for job in made]
    assert sorted(rounds) == [1, 1, 1, 1, 100, 100]
    assert {job.config["seed"] for job in made} == {0, 42}
