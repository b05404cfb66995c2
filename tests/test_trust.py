"""A configuration from a stranger cannot run a program: each way that is known is tried."""

import ast
from pathlib import Path

import pytest
import yaml
from tiny import CHECKOUT, TINY, check, command, python

from pai.errors import ConfigError

ATTACKS = [
    ["dataset._target_=os.system"],
    ["+dataset.extra={_target_: os.system, command: id}"],
    ["model._target_=pai.compose.Path.unlink"],
    ["scorer._target_=pai.cli.main"],
    ["dataset={_target_: pai.data.download.fetch_zip, url: x, md5: y, folder: z}"],
    ["scorer={_target_: pai.masking.mask.save_mask, mask: {}, path: x}"],
    ["training.optimizer={_target_: pai.output.remove_checkpoints, run_dir: x}"],
    ["logger={_target_: pai.records.write_bytes_atomically, path: x, content: y}"],
    ["scorer.saliency={_target_: pai.training.checkpoint.load_checkpoint, _partial_: true}"],
    ["scorer._target_=pai.scorers.factors.replace_conv1d"],
    ["+hydra.callbacks.x={_target_: pai.cli.main}"],
    ["+hydra.callbacks.x={_target_: pai.data.download.fetch_files, files: {}, folder: x}"],
    ["hydra.job_logging.handlers.console.class=pai.cli.main"],
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


@pytest.mark.parametrize(
    "setting",
    [
        "hydra.searchpath=[pkg://evil_package]", "++hydra.searchpath=['pkg://evil_package']",
        "hydra.searchpath=[file://folder,'pkg://evil_package.conf']",
    ],
)  # fmt: skip
def test_a_search_path_imports_no_package(setting: str, tmp_path: Path) -> None:
    package = tmp_path / "evil_package"
    package.mkdir()
    (package / "__init__.py").write_text("open('was-here', 'w').close()")
    path = f"{tmp_path}:{CHECKOUT}"
    done = python("-m", "pai", *TINY, setting, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("config error: hydra.searchpath: pkg:// is not for folders; ")
    assert [path.name for path in tmp_path.iterdir()] == ["evil_package"]


def test_the_primary_file_of_somebody_else_imports_none_either(tmp_path: Path) -> None:
    (tmp_path / "evil_package").mkdir()
    (tmp_path / "evil_package" / "__init__.py").write_text("open('was-here', 'w').close()")
    (tmp_path / "conf").mkdir()
    settings = {"hydra": {"searchpath": ["pkg://evil_package"]}}
    (tmp_path / "conf" / "config.yaml").write_text(yaml.safe_dump(settings))
    path = f"{tmp_path}:{CHECKOUT}"
    done = python("-m", "pai", "--config-path", "conf", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr.startswith("config error: hydra.searchpath: pkg:// is not for folders; ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "evil_package"]


def test_a_search_path_may_name_folders(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        (folder / "scorer").mkdir(parents=True)
        text = "_target_: pai.scorers.magnitude.Magnitude\n"
        (folder / "scorer" / f"own_{folder.name}.yaml").write_text(text)
    path = f"hydra.searchpath=[file://{tmp_path / 'a'},'file://{tmp_path / 'b'}']"
    for name in ("own_a", "own_b"):
        check(*TINY, path, f"scorer={name}")
    with pytest.raises(ConfigError, match="own_b"):
        check(*TINY, "scorer=own_b")


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
    for setting in (
        "logger.group='${oc.env:WANDB_API_KEY}'", f"logger.group=of-{key}",
        "hydra.run.dir=runs/${oc.env:WANDB_API_KEY}", f"+hydra.job.env_set.OMP_KEY={key}",
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="contains the value of WANDB_API_KEY") as refused:
            check(*TINY, "logger=wandb", setting)
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


@pytest.mark.parametrize(
    "setting",
    [
        "hydra.job.name=${oc.env:WANDB_API_KEY}", "hydra.output_subdir=${oc.env:WANDB_API_KEY}",
        "hydra.job_logging.formatters.simple.format='${oc.env:WANDB_API_KEY} %(message)s'",
        "hydra.job.config.override_dirname.kv_sep=${oc.env:WANDB_API_KEY}",
        "hydra.verbose=${oc.env:WANDB_API_KEY}", "+hydra.job.env_set.WANDB_PROJECT=of-{key}",
    ],
)  # fmt: skip
def test_the_key_of_wandb_reaches_no_file_through_hydra(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(ConfigError, match=r"value of WANDB_API_KEY|write it out") as refused:
        check(*TINY, setting.replace("{key}", key))
    assert key not in str(refused.value)


def test_the_key_of_wandb_is_in_no_file_of_a_run_that_fails(tmp_path: Path) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    done = python(
        "-m", "pai", *TINY, "logger=wandb", "logger.mode=offline", "training.optimizer.lr=1e30",
        "hydra.run.dir=run", "hydra.verbose=true", cwd=tmp_path, WANDB_API_KEY=key,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert key not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "pai.log" for path in files)
    assert [path for path in files if key.encode() in path.read_bytes()] == []


EXECUTING = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "joblib.load", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "torch.hub.load",
}  # fmt: skip
UNPICKLING = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
NEEDED = {"torch.load": ("weights_only", True)}
FORBIDDEN = [("allow_pickle", True), ("shell", True), ("weights_only", False)]


def dangers(source: str) -> list[str]:
    """Return the calls and imports in ``source`` by which data could be executed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else modules
            found += [name for name in modules if name.split(".")[0] in UNPICKLING]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {
                keyword.arg: keyword.value.value
                for keyword in node.keywords
                if isinstance(keyword.value, ast.Constant)
            }
            needed = NEEDED.get(called)
            if (
                called in EXECUTING
                or (needed and options.get(needed[0]) != needed[1])
                or any(options.get(name) == value for name, value in FORBIDDEN)
            ):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)", "exec(open(name).read())", "import pickle", "from dill import loads",
        "torch.load(path)", "torch.load(path, weights_only=False)", "yaml.load(text, Loader)",
        "np.load(path, allow_pickle=True)", "subprocess.run(line, shell=True)", "os.system(line)",
        "def f():\n    import marshal", "torch.load(path, weights_only=safe)",
    ],
)  # fmt: skip
def test_ways_to_execute_data_are_seen(source: str) -> None:
    assert len(dangers(source)) == 1


def test_no_source_executes_data() -> None:
    files = [
        path
        for folder in ("pai", "scripts", "benchmarks")
        for path in sorted((CHECKOUT / folder).rglob("*.py"))
    ]
    assert len(files) > 150
    found = {str(path): dangers(path.read_text()) for path in files}
    assert {path: what for path, what in found.items() if what} == {}
    assert dangers("model.eval(); torch.load(path, weights_only=True); re.compile(text)") == []
