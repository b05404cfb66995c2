"""The jobs that are checked beforehand are exactly those that Hydra then runs, in its order."""

import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from tiny import config, jobs

from pai.cli import _parse, register_resolvers
from pai.compose import compose_jobs
from pai.errors import ConfigError
from pai.overrides import quoted
from pai.paths import config_folder

SWEEPS = [
    ["seed=2,0", "scorer=snip,hp", "sparsity=0.5"],
    ["seed=range(0,1)", "sparsity=sort(0.9,0.5)"],
    ["scorer=glob(f*)"],
    ["seed=0", "seed=1,2", "seed=5"],
    ["training.optimizer.lr=1e-3,0.10"],
    ["training.optimizer.lr=1e-3", "sparsity=0.50", "logger.tags=[a, b]", "logger.project='a b'"],
    ["~logger.tags", "++training.epochs=3"],
    ["dataset=cifar10", "dataset.root=a/b/c", f"logger.project={'long' * 100}"],
    ["hydra.sweep.dir=out/here", "hydra.sweep.subdir=s${seed}"],
    ["hydra.sweep.subdir=${hydra.job.num}", "seed=1,0"],
    [],
]
SINGLE = [
    ["hydra.run.dir=out/${seed}/${hydra.job.override_dirname}", "seed=3", "sparsity=0.50"],
    ["scorer=synflow", "training.optimizer.lr=1e-3"],
]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    register_resolvers()


def by_hydra(*arguments: str) -> list[tuple[Path, dict[str, Any]]]:
    """Let Hydra itself run the jobs; return run directory and configuration of each."""
    seen: list[tuple[Path, dict[str, Any]]] = []

    def task(config: DictConfig) -> None:
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        seen.append((Path(HydraConfig.get().runtime.output_dir), resolved))

    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pai", *arguments, *quiet])
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(
            task
        )()
    return seen


def by_pai(*arguments: str) -> list[tuple[Path, dict[str, Any]]]:
    return [(job.run_dir.absolute(), job.config) for job in jobs(*arguments)]


@pytest.mark.parametrize("overrides", SWEEPS, ids=" ".join)
def test_a_sweep_expands_as_hydra_expands_it(overrides: list[str]) -> None:
    expected, actual = by_hydra("-m", *overrides), by_pai("-m", *overrides)
    assert [run_dir for run_dir, _ in actual] == [run_dir for run_dir, _ in expected]
    assert [settings for _, settings in actual] == [settings for _, settings in expected]


@pytest.mark.parametrize("overrides", SINGLE, ids=" ".join)
def test_a_single_run_is_where_hydra_puts_it(overrides: list[str]) -> None:
    assert by_pai(*overrides) == by_hydra(*overrides)


def test_every_job_has_its_own_folder_directly_in_the_sweeps_folder() -> None:
    composed = jobs("-m", "dataset=cifar10", "dataset.root=/a/b,/a_b,/a\\b", "seed=0,1")
    assert len({job.run_dir for job in composed}) == len(composed) == 6
    for job in composed:
        assert job.run_dir.parent == job.sweep_dir
        assert len(job.run_dir.name.encode()) <= 255


def test_the_order_of_overrides_does_not_change_a_jobs_folder() -> None:
    first, second = jobs("-m", "seed=1", "sparsity=0.5"), jobs("-m", "sparsity=0.5", "seed=1")
    assert [job.run_dir.name for job in first] == [job.run_dir.name for job in second]


def test_jobs_of_one_command_share_their_time_stamp() -> None:
    folders = {job.sweep_dir for job in jobs("-m", "seed=0,1")} | {jobs("-m")[0].sweep_dir}
    assert len(folders) == 1


def test_the_mode_can_also_be_set_as_an_override() -> None:
    arguments = _parse(["hydra.mode=MULTIRUN", "seed=0,1"])
    composed = compose_jobs(arguments)
    assert arguments.multirun
    assert [job.config["seed"] for job in composed] == [0, 1]
    assert all(job.run_dir.parent == job.sweep_dir for job in composed)


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A folder with the user's own scorer and experiment."""
    folder = tmp_path / "with a space, a 'quote' and [brackets]"
    (folder / "scorer").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "scorer" / "mine.yaml").write_text("_target_: pai.scorers.magnitude.Magnitude\n")
    (folder / "experiment" / "study.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /scorer: mine\n  - _self_\n"
        "sparsity: 0.25\n"
        "hydra:\n  sweeper:\n    params:\n      seed: 3,4\n"
    )
    return folder


def test_a_users_folder_adds_choices(users_folder: Path) -> None:
    (job,) = jobs("--config-dir", str(users_folder), "scorer=mine")
    assert job.config["scorer"] == {"_target_": "pai.scorers.magnitude.Magnitude"}
    assert jobs("--config-dir", str(users_folder), "scorer=snip")  # pai's own are still there


def test_a_users_choice_is_suggested_like_pais_own(users_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'mien' is not a choice; did you mean 'mine'"):
        jobs("--config-dir", str(users_folder), "scorer=mien")


def test_an_experiment_may_define_a_sweep(users_folder: Path) -> None:
    arguments = ["-m", "--config-dir", str(users_folder), "+experiment=study"]
    composed = by_pai(*arguments)
    assert composed == by_hydra(*arguments)
    assert [settings["seed"] for _, settings in composed] == [3, 4]
    assert {settings["sparsity"] for _, settings in composed} == {0.25}


def test_the_command_line_wins_over_the_sweep_of_an_experiment(users_folder: Path) -> None:
    arguments = ["-m", "--config-dir", str(users_folder), "+experiment=study", "seed=5,6"]
    composed = by_pai(*arguments)
    assert composed == by_hydra(*arguments)
    assert [settings["seed"] for _, settings in composed] == [5, 6]


def test_a_sweep_of_an_experiment_needs_the_flag(users_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"seed.*-m"):
        jobs("--config-dir", str(users_folder), "+experiment=study")


def test_the_resolved_configuration_is_plain_data() -> None:
    def plain(value: Any) -> bool:
        if type(value) is dict:
            return all(type(key) is str and plain(item) for key, item in value.items())
        if type(value) is list:
            return all(plain(item) for item in value)
        return value is None or type(value) in (str, int, float, bool)

    assert plain(config())
    assert "hydra" not in config()


@pytest.mark.parametrize(
    "text",
    ["a", "", "two words", "a,b", "it's", '"', "[x]", "k=v", "#$%", "C:\\runs\\1", "end\\", "\\\\",
     "\\'", "\\\\', x=\\'", "null", "1e3", " a "],
)  # fmt: skip
def test_a_quoted_text_is_the_value_that_hydra_reads(text: str) -> None:
    parser = OverridesParser.create()
    assert parser.parse_override(f"key={quoted(text)}").value() == text
    assert parser.parse_override(f"key=[{quoted(text)},b]").value() == [text, "b"]
