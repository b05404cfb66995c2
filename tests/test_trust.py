"""A configuration from a stranger cannot run a program: each way that is known is tried."""

import re
from pathlib import Path

import pytest
import yaml
from tiny import CHECKOUT, TINY, check, command, python

from pai.errors import ConfigError

ATTACKS = [
    ["dataset._target_=os.system"],
    ["+dataset.extra={_target_: os.system, command: id}"],
    ["model._target_=pai.compose.Path.unlink"],
    ["scorer._target_=subprocess.Popen"],
    ["+hydra.callbacks.x={_target_: os.system, command: id}"],
    ["+hydra.callbacks.x={_target_: hydra.utils.instantiate}"],
    ["+hydra.callbacks.x={_target_: pai.library.load, y: {_target_: os.system}}"],
    ["+hydra.launcher.x={_target_: os.system, command: id}"],
    ["+hydra.sweeper.x=[{_target_: os.system, command: id}]"],
    ["hydra.job_logging.handlers.console.class=subprocess.Popen"],
    ["+hydra.job_logging.handlers.console.()=os.system"],
    ["+hydra.job_logging.formatters.simple.()=os.system"],
    ["hydra.job_logging.handlers.console.stream=ext://os.environ"],
    ["+hydra.hydra_logging.filters.x={(): os.system}"],
    ["+hydra.job.env_set.PAI_TRUSTED_PACKAGES=os"],
    ["+hydra.job.env_set.LD_PRELOAD=/tmp/evil.so"],
    ["+hydra.launcher.setup=[id]"],
]


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack[0][:60] for attack in ATTACKS])
def test_settings_that_run_code_are_refused(attack: list[str]) -> None:
    with pytest.raises(ConfigError):
        check(*TINY, *attack)


@pytest.mark.parametrize(
    "harmless",
    [
        "hydra.job_logging.handlers.console.level=DEBUG", "+hydra.job.env_set.OMP_NUM_THREADS='1'",
        "hydra/job_logging=stdout", "hydra/job_logging=disabled",
    ],
)  # fmt: skip
def test_harmless_settings_are_not(harmless: str) -> None:
    check(*TINY, harmless)


def test_a_package_can_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = "+hydra.callbacks.x={_target_: users_own_parts.Own}"
    with pytest.raises(ConfigError, match="PAI_TRUSTED_PACKAGES"):
        check(*TINY, attack)
    monkeypatch.setenv("PAI_TRUSTED_PACKAGES", "users_own_parts")
    check(*TINY, attack)


def test_a_strangers_folder_of_configurations_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "was-here"
    evil = tmp_path / "conf" / "experiment"
    evil.mkdir(parents=True)
    (evil / "evil.yaml").write_text(
        "# @package _global_\n"
        + yaml.safe_dump(
            {"hydra": {"callbacks": {"x": {"_target_": "os.system", "command": f"touch {target}"}}}}
        )
    )
    done = command("--config-dir", "conf", *TINY, "+experiment=evil", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("config error: hydra.callbacks.x._target_: 'os.system' is not in")
    assert not target.exists()
    assert not (tmp_path / "runs").exists()


def test_jobs_that_are_harmless_do_not_hide_a_sweep_that_is_not(tmp_path: Path) -> None:
    target = tmp_path / "was-here"
    evil = tmp_path / "conf" / "experiment"
    evil.mkdir(parents=True)
    hydra = {
        "callbacks": {"x": {"_target_": "logging.FileHandler", "filename": str(target)}},
        "sweeper": {"params": {"hydra.callbacks.x": "null"}},
    }
    (evil / "evil.yaml").write_text("# @package _global_\n" + yaml.safe_dump({"hydra": hydra}))
    done = command("-m", "--config-dir", "conf", *TINY, "+experiment=evil", cwd=tmp_path)
    assert not target.exists()
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "config error: hydra.callbacks.x._target_: 'logging.FileHandler' is not in"
    )


def test_the_key_of_wandb_reaches_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(ConfigError, match="contains the value of WANDB_API_KEY") as refused:
        check(*TINY, "logger=wandb", "logger.group='${oc.env:WANDB_API_KEY}'")
    assert key not in str(refused.value)
    done = python(
        "-m", "pai", *TINY, "logger=wandb", "logger.mode=offline", "training.epochs=0",
        "hydra.run.dir=run", cwd=tmp_path, WANDB_API_KEY=key,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert key not in done.stdout + done.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    assert [path for path in files if key.encode() in path.read_bytes()] == []


SUSPICIOUS = re.compile(r"\b(eval|exec)\(|pickle\.loads?\(|torch\.load\((?!.*weights_only=True)")


def test_no_source_evaluates_or_unpickles() -> None:
    found = [
        f"{path}: {line}"
        for folder in ("pai", "scripts")
        for path in sorted((CHECKOUT / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if SUSPICIOUS.search(line.replace(".eval()", ""))
    ]
    assert found == []
