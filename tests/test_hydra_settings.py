"""Settings below ``hydra`` that would run, write or send something are refused, also by detours."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import CHECKOUT, TINY, check, jobs, python

from pai.errors import ConfigError

TOUCH = "{_target_:uuid._get_command_stdout,_args_:[touch,was-here]}"
CALLED = "{\\(\\):uuid._get_command_stdout,command:touch}"
DETOURS: dict[str, dict[str, Any]] = {
    "a callback that is created": {"callbacks": {"x": f"${{oc.create:{TOUCH}}}"}},
    "a callback that is decoded": {"callbacks": {"x": f"${{oc.decode:'{TOUCH}'}}"}},
    "all callbacks": {"callbacks": f"${{oc.create:{{x:{TOUCH}}}}}"},
    "a part of the sweeper": {"sweeper": {"params": {"x": f"${{oc.create:{TOUCH}}}"}}},
    "a formatter": {"job_logging": {"formatters": {"simple": f"${{oc.create:{CALLED}}}"}}},
    "a handler": {"job_logging": {"handlers": {"console": f"${{oc.decode:'{CALLED}'}}"}}},
    "Hydra's own log": {"hydra_logging": {"formatters": {"x": f"${{oc.create:{CALLED}}}"}}},
    "a choice": {"callbacks": {"x": "${hydra.runtime.choices.zz}"}},
    "an option of the run": {"callbacks": {"x": "${model}"}},
    "a relative path": {"callbacks": {"x": "${...runtime}"}},
    "a name inside a name": {"callbacks": {"x": "${hydra.${hydra.job.name}.x}"}},
}  # fmt: skip


def experiment(folder: Path, hydra: dict[str, Any], **settings: Any) -> list[str]:
    """Write an experiment with these settings of Hydra; return what chooses it."""
    (folder / "conf" / "experiment").mkdir(parents=True)
    text = yaml.safe_dump({"hydra": hydra, **settings})
    (folder / "conf" / "experiment" / "evil.yaml").write_text(f"# @package _global_\n{text}")
    return ["--config-dir", str(folder / "conf"), *TINY, "+experiment=evil"]


@pytest.mark.parametrize("name", DETOURS)
def test_interpolations_build_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^hydra\..*(write it out|group of settings belongs)"):
        check(*experiment(tmp_path, DETOURS[name]))
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_a_created_callback_is_one_line_and_runs_nothing(tmp_path: Path) -> None:
    hydra = DETOURS["a callback that is created"]
    done = python("-m", "pai", *experiment(tmp_path, hydra), "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("config error: hydra.callbacks.x: '${oc.create:")
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_no_component_hides_in_options() -> None:
    node = "{_target_: joblib.load, filename: x}"
    network = ["model=timm", "model.name=resnet10t"]
    with pytest.raises(ConfigError, match=r"^model\.options\.a\._target_: 'joblib\.load': no comp"):
        check(*network, f"+model.options.a={node}")
    with pytest.raises(ConfigError, match=r"^model\.options\.a\.1\.b\._target_: "):
        check(*network, f"+model.options.a=[1,{{b: {node}}}]")
    with pytest.raises(ConfigError, match=r"^hydra\.callbacks\.x: '\$\{model\.options\.a\}'"):
        check(*network, f"+model.options.a={node}", "+hydra.callbacks.x=${model.options.a}")


@pytest.mark.parametrize(
    "hydra",
    [
        {"launcher": {"partition": "x\ntouch was-here\n#"}},
        {"launcher": {"name": "x\rtouch"}},
        {"launcher": {"comment": "x\x1b[2J"}},
        {"launcher": {"additional_parameters": {"x\ntouch was-here\n#": 1}}},
        {"launcher": {"name": "${hydra.job.name}"}, "job": {"name": "x\ntouch was-here\n#"}},
        {"sweep": {"dir": "runs/x\ntouch was-here\n#"}},
    ],
    ids=str,
)
def test_no_line_of_a_script_is_added(hydra: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    hydra = {"sweep": {"dir": "sweep"}, **hydra}
    with pytest.raises(ConfigError, match=r"control character|not the name of a file"):
        check("-m", *experiment(tmp_path, hydra), "hydra/launcher=submitit_slurm", "seed=0,1")


@pytest.mark.parametrize(
    "setting",
    [
        "+hydra.launcher.setup=[id]", "+hydra.launcher.python=id", "+hydra.launcher.srun_args=[x]",
        "+hydra.launcher.additional_parameters.wrap=id", "+hydra.launcher.anything=1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("launcher", ["submitit_slurm", "submitit_local", "joblib", "basic"])
def test_a_launcher_has_the_settings_that_are_known(
    launcher: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setattr("pai.launchers.shutil.which", lambda name: name)
    overrides = ["-m", *TINY, f"hydra/launcher={launcher}", "seed=0,1"]
    package = {"basic": "hydra", "joblib": "joblib"}.get(launcher, "submitit")
    check(*overrides)
    setting = setting.replace("+", "++")
    with pytest.raises(ConfigError, match=rf"could run a command; .* name {package} in PAI_TRUST"):
        check(*overrides, setting)
    monkeypatch.setenv("PAI_TRUSTED_PACKAGES", package)
    check(*overrides, setting)


RAY = "hydra_plugins.hydra_ray_launcher"


@pytest.mark.parametrize(
    ("launcher", "faults"),
    [
        ({"_target_": f"{RAY}.ray_launcher.RayLauncher", "ray": {
            "init": {"address": "auto", "object_store_memory": None, "log_to_driver": True},
            "remote": {"num_cpus": 1, "num_gpus": 0, "max_retries": 0}}}, []),
        ({"_target_": f"{RAY}.ray_launcher.RayLauncher", "ray": {
            "init": {"address": "ray://there:10001", "runtime_env": {"working_dir": "x"}},
            "cluster": {"setup_commands": ["id"], "initialization_commands": ["id"]}}},
         ["ray.init.address", "ray.init.runtime_env.working_dir", "ray.cluster.setup_commands.0",
          "ray.cluster.initialization_commands.0"]),
        ({"_target_": f"{RAY}.ray_aws_launcher.RayAWSLauncher", "ray": {
            "cluster": {"setup_commands": ["id"]}}}, ["_target_"]),
        ({"_target_": "hydra_plugins.somebodys.Launcher", "before": "id"}, ["_target_"]),
    ],
)  # fmt: skip
def test_a_cluster_of_ray_runs_no_command(launcher: dict[str, Any], faults: list[str]) -> None:
    from pai.hydra_settings import _launcher_faults  # Ray itself may not be installed

    found = _launcher_faults(launcher)
    assert [fault.split(": ")[0] for fault in found] == [f"hydra.launcher.{key}" for key in faults]


LOGGING = [
    {"formatters": {"x": {"class": "logging.os.spawnlp", "format": "x"}}},
    {"formatters": {"x": {"class": "logging.io.open", "format": "precious.txt", "datefmt": "w"}}},
    {"formatters": {"x": {"class": "colorlog.os.system"}}},
    {"formatters": {"simple": {"format": "${oc.env:HOME} %(message)s"}}},
    {"formatters": {"simple": {"format": "%(message"}}},
    {"formatters": {"simple": {"format": "{0.__class__}", "style": "{"}}},
    {"formatters": {"simple": {"()": "os.system"}}},
    {"handlers": {"x": {"class": "logging.handlers.SysLogHandler", "address": ["a.b", 514]}}},
    {"handlers": {"x": {"class": "logging.StreamHandler", ".": {"terminator": "x"}}}},
    {"handlers": {"x": {"class": "logging.StreamHandler", "stream": "ext://os.environ"}}},
    {"handlers": {"console": {"formatter": "nope"}}},
    {"handlers": {"file": {"filename": "home/.bashrc"}}},
    {"handlers": {"file": {"filename": "/etc/x.log"}}},
    {"handlers": {"file": {"filename": "${hydra.runtime.output_dir}/../x.log"}}},
    {"handlers": {"file": {"filename": "${hydra.runtime.output_dir}/.bashrc"}}},
    {"handlers": 3},
    {"filters": {"x": {"()": "os.system"}}},
    {"root": {"level": "NOPE"}},
    {"root": {"handlers": ["nope"]}},
    {"loggers": {"pai": {"level": ["DEBUG"]}}},
    {"loggers": {"pai": 3}},
    {"version": 2},
]  # fmt: skip


@pytest.mark.parametrize("settings", LOGGING, ids=str)
@pytest.mark.parametrize("part", ["job_logging", "hydra_logging"])
def test_logging_writes_to_the_run_and_the_screen_only(
    part: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"^hydra\.{part}[.:]"):
        check(*experiment(tmp_path, {part: settings}))


def test_another_file_in_the_run_may_be_the_log(tmp_path: Path) -> None:
    place = "${hydra.runtime.output_dir}/own.log"
    check(*experiment(tmp_path, {"job_logging": {"handlers": {"file": {"filename": place}}}}))


@pytest.mark.parametrize("choice", ["disabled", "none", "stdout", "default"])
def test_every_log_of_hydra_can_be_chosen(choice: str, tmp_path: Path) -> None:
    overrides = [*TINY, "training.epochs=0", "hydra.run.dir=run", f"hydra/job_logging={choice}"]
    done = python("-m", "pai", *overrides, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("+hydra.job.env_set.NCCL_NET_PLUGIN=x", "set it in your shell"),
        ("+hydra.job.env_set.NCCL_TUNER_PLUGIN=x", "set it in your shell"),
        ("+hydra.job.env_set.OMP_TOOL_LIBRARIES=x", "set it in your shell"),
        ("+hydra.job.env_set.OMP_NUM_THREADS=99999999999999999999", "number from 1 to 4096"),
        ("+hydra.job.env_set.OMP_NUM_THREADS=0", "number from 1 to 4096"),
        ("hydra.job.env_set=${seed}", "hydra.job.env_set: 0 is no group of variables"),
        ("hydra.job.env_copy=[NOPE]", "hydra.job.env_copy: no environment variable 'NOPE'"),
        ("hydra.job.env_copy=[PATH]", "hydra.job.env_set.PATH: set it in your shell"),
        ("hydra.job.env_copy=${seed}", "cannot be composed (TypeError"),
        ("hydra.job.name=a/b", "hydra.job.name: 'a/b' is not the name of a file"),
        (f"hydra.job.name={'x' * 201}", "is not the name of a file"),
        ("hydra.output_subdir=/proc/x", "hydra.output_subdir: '/proc/x' is not a folder inside"),
        ("hydra.output_subdir=a/../../x", "is not a folder inside"),
        ("hydra.verbose={a: 1}", "hydra.verbose: {'a': 1} should be true, false or names"),
        ("hydra.verbose=[1]", "hydra.verbose: [1] should be"),
        ("+hydra.callbacks.x=1", "hydra.callbacks.x: 1 is no node with a _target_"),
        ("+hydra.help={_target_: x}", "hydra.help"),
        ("hydra.run.dir=", "hydra.run.dir: is empty"),
        ("hydra.run.dir=${oc.env:NOPE,''}", "hydra.run.dir: is empty"),
        ("hydra.run.dir='a\x1b[31mb'", "/a\\x1b[31mb' has a control character"),
        ("hydra.run.dir='a\u202eb'", "has a control character"),
        ("hydra.mode=${seed}", "hydra.mode: "),
        ("hydra.sweeper=null", "hydra.sweeper: None stands where a group of settings belongs"),
        ("~hydra/sweeper", "hydra.sweeper: nothing stands where a group of settings belongs"),
        ("~hydra/launcher", "hydra.launcher: nothing stands where"),
        ("~hydra.searchpath", "hydra.searchpath: "),
        ("training=${oc.env:NOPE,null}", "cannot be composed (AssertionError"),
        ("hydra.runtime=${oc.env:NOPE,null}", "cannot be composed (AttributeError"),
        ("hydra.job=${seed}", "cannot be composed (AttributeError"),
        ("hydra.run=${hydra:run.dir}", "hydra.run: '${hydra:run.dir}' stands where"),
        ("hydra.run.dir=${hydra:run.dir}", "HydraConfig was not set"),
        ("scoring.cache_dir='~nouser/x'", "scoring.cache_dir: '~nouser/x': there is no such home"),
        ("hydra.sweeper.params=${seed}", "hydra.sweeper.params: '${seed}': write it out"),
    ],
)
def test_other_settings_of_hydra_are_checked_too(
    setting: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check(*TINY, setting)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("hydra.sweep.dir=", "hydra.sweep.dir: is empty"),
        ("hydra.sweep.dir='a\x07'", "/a\\x07' has a control character"),
        ("hydra.sweep.subdir=../../x${seed}", "hydra.sweep.subdir: '../../x0' is not a folder in"),
        ("hydra.sweep.subdir=/x${seed}", "hydra.sweep.subdir: '/x0' is not a folder inside"),
        ("hydra.sweep.subdir='\x1b${seed}'", "is not a folder inside another one"),
        ("hydra.job_logging.root.level=INFO,NOPE", "hydra.job_logging.root.level: 'NOPE'"),
        ("hydra.searchpath=[a],[b]", "hydra.searchpath: is the same for all jobs"),
    ],
)
def test_settings_of_a_sweep_are_checked_too(setting: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check("-m", *TINY, "seed=0,1", setting)
    assert words in str(caught.value)
    assert "the overrides were" not in str(caught.value)


def test_what_only_the_jobs_know_is_not_asked_of_the_sweep(tmp_path: Path) -> None:
    place = "${hydra.runtime.output_dir}/${hydra.job.num}.log"
    log = experiment(tmp_path, {"job_logging": {"handlers": {"file": {"filename": place}}}})
    check("-m", *log, "sparsity=0.5,0.9", "seed='${training.epochs}'")
    images = ["model.depth=8", "dataset=imagefolder", "+logger.group='${dataset.root}'"]
    found = jobs("-m", *images, "logger=wandb", "dataset.root=a,b", "hydra.sweep.dir=s")
    assert [job.config["dataset"]["root"] for job in found] == ["a", "b"]


def test_a_directory_of_a_job_holds_no_character_that_a_terminal_obeys() -> None:
    (job, _) = jobs("-m", *TINY, "seed=0,1", "logger=wandb", "+logger.group='a\x1b]0;x\x07\nb'")
    assert job.run_dir.name.isprintable()


PACKAGE = "open('was-here', 'w').close()"
SEARCHED: dict[str, list[str]] = {
    "escaped": ["hydra.searchpath=[pkg\\://evil_package]"],
    "made of a variable": ["hydra.searchpath=['${oc.env:NOPE,pkg}://evil_package']"],
    "swept": ["-m", "hydra.searchpath=['pkg://evil_package'],[]"],
    "after a folder": ["hydra.searchpath=['file://a/pkg://evil_package']"],
}


@pytest.mark.parametrize("name", SEARCHED)
def test_no_search_path_imports_a_package(name: str, tmp_path: Path) -> None:
    _evil_package(tmp_path)
    done = python("-m", "pai", *TINY, *SEARCHED[name], cwd=tmp_path, PYTHONPATH=_with(tmp_path))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("config error: hydra.searchpath: ")
    assert [path.name for path in tmp_path.iterdir()] == ["evil_package"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hydra:\n  searchpath: ['pkg://evil_package']\n", "config.yaml"),
        ("foo: ['pkg://evil_package']\nhydra:\n  searchpath: ${foo}\n", "config"),
        ("foo:\n  searchpath: ['pkg://evil_package']\nhydra: ${foo}\n", "config"),
        ("hydra:\n  searchpath: ['${oc.env:NOPE,pkg}://evil_package']\n", "config"),
        ("hydra:\n  searchpath: ['pkg://evil_package']\n", "../conf/config"),
    ],
)
def test_no_primary_file_imports_a_package(text: str, name: str, tmp_path: Path) -> None:
    _evil_package(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(text)
    flags = ["--config-path", "conf", "--config-name", name]
    done = python("-m", "pai", *flags, cwd=tmp_path, PYTHONPATH=_with(tmp_path))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(("config error: hydra", "config error: --config-name"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "evil_package"]


def test_the_sweep_of_an_experiment_imports_no_package(tmp_path: Path) -> None:
    _evil_package(tmp_path)
    hydra = {"sweeper": {"params": {"hydra.searchpath": "['pkg://evil_package']"}}}
    arguments = ["-m", "pai", "-m", *experiment(tmp_path, hydra)]
    done = python(*arguments, cwd=tmp_path, PYTHONPATH=_with(tmp_path))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("config error: hydra.searchpath: pkg:// is not for folders")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "evil_package"]


def _evil_package(folder: Path) -> None:
    (folder / "evil_package").mkdir()
    (folder / "evil_package" / "__init__.py").write_text(PACKAGE)


def _with(folder: Path) -> str:
    return f"{folder}:{CHECKOUT}"
