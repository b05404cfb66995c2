"""The command ``pai``: Hydra's door. Everything is composed and checked before anything starts.

Exit codes: 0 done; 1 the work failed (the record says how); 2 the configuration is at fault.
"""

import argparse
import datetime
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pai.distributed import broadcast_object, is_main, launched, process_group, rank
from pai.errors import ConfigError, RunError
from pai.paths import config_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pai.tracking.base import RunLabels

_STARTED = datetime.datetime.now()
_log = logging.getLogger("pai")
_failure: list[BaseException] = []


def main() -> None:
    """Run the command line and exit."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us instead of being printed
    # Idle OpenMP threads spin for a moment and then sleep. By default they spin for long, which on
    # a machine with other work slows a small network many times over.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    register_resolvers()
    if sys.argv[1:2] == ["cache"]:
        from pai.cache_command import main as cache

        sys.exit(cache(sys.argv[2:]))
    with process_group():
        sys.exit(_command(sys.argv[1:]))


def _command(argv: list[str]) -> int:
    """Run the command line as the main process or as one that helps it; return the exit code."""
    try:
        arguments = _parse(argv)
        if _only_information(arguments):
            if is_main():
                _answer(arguments)
            return 0
        jobs = _checked_jobs(arguments)
    except ConfigError as error:
        if is_main():
            print(f"config error: {_one_line(error)}", file=sys.stderr)
        return 2
    except RunError as error:  # a damaged file seen while checking; nothing has started
        print(f"run error: {_one_line(error)}", file=sys.stderr)
        return 1
    if not is_main():
        return _help()
    if launched() > 1:  # torchrun would end this process before it can say how the run failed
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        _stop_on(signal.SIGTERM, signal.SIGUSR2)
    code = _sweep(jobs) if arguments.multirun else _single(jobs[0])
    if code == 0:
        broadcast_object(None)
    return code


def _stop_on(*signals: signal.Signals) -> None:
    """Let these signals (the end of a job's time, preemption) end the run like Ctrl-C, once."""

    def stop(number: int, frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)  # what is left is writing the record
        raise KeyboardInterrupt(signal.Signals(number).name)

    for each in signals:
        signal.signal(each, stop)


def register_resolvers() -> None:
    """Register the OmegaConf resolvers that ``conf/config.yaml`` uses."""
    from omegaconf import OmegaConf

    from pai.naming import folder_name

    OmegaConf.register_new_resolver("pai_now", _STARTED.strftime, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("pai_folder_name", folder_name, replace=True)


def _parse(argv: list[str]) -> argparse.Namespace:
    from hydra._internal.utils import get_args_parser

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise ConfigError(f"command line: {message}; flags go before overrides, see pai --help")

    parser = get_args_parser()
    parser.__class__ = Parser
    arguments = parser.parse_args(argv)
    if arguments.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: not supported, it would unpickle a file")
    return arguments


def _only_information(arguments: argparse.Namespace) -> bool:
    return bool(
        arguments.help or arguments.hydra_help or arguments.cfg or arguments.info
        or arguments.shell_completion
    )  # fmt: skip


def _answer(arguments: argparse.Namespace) -> None:
    """Let Hydra answer ``--help``, ``--cfg`` and the like, once the overrides are known to fit."""
    from hydra.errors import HydraException

    from pai.compose import compose_jobs

    arguments.multirun = True  # a configuration that sweeps may be looked at without -m
    compose_jobs(arguments)
    try:
        _hydra()
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def _checked_jobs(arguments: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Compose and validate every job; return the run directory and sweep directory of each."""
    from pai.compose import compose_jobs
    from pai.plan import prepare
    from pai.runner import check_run_directory

    jobs = compose_jobs(arguments)
    for job in jobs:
        prepare(job.config)
        if is_main():
            check_run_directory(job.run_dir, job.config)
    return [(job.run_dir, job.sweep_dir) for job in jobs]


def _hydra() -> None:
    import hydra

    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(_job)()


def _job(config: "DictConfig") -> float | None:
    """Run one job inside Hydra; returns the best validation accuracy, for sweepers that search."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from pai.plan import prepare
    from pai.reports.summary import one_line, summarise
    from pai.runner import run

    logging.captureWarnings(True)
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    multirun = hydra.mode == RunMode.MULTIRUN
    resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    try:
        plan = prepare(resolved)
        broadcast_object(resolved)
        record = run(plan, run_dir, _labels(hydra, multirun=multirun))
    except (Exception, KeyboardInterrupt) as error:
        _log.debug("the run failed", exc_info=True)  # to the log file
        if multirun and launched() > 1:  # the other processes are in an unknown state
            raise SystemExit(1) from error
        if multirun:
            raise
        _failure.append(error)
        return None
    print(one_line(record, run_dir) if multirun else summarise(record, run_dir))
    accuracy: float = record["metrics"]["best_val_accuracy"]
    return accuracy


def _help() -> int:
    """Take part in the runs of the main process until there are no more; return the exit code."""
    from pai.plan import prepare
    from pai.runner import follow

    logging.captureWarnings(True)
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        while (config := broadcast_object(None)) is not None:
            follow(prepare(config))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (printed; the run ends)
        print(f"run error: process {rank()}: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _labels(hydra: Any, *, multirun: bool) -> "RunLabels":
    from pai.tracking.base import RunLabels

    return RunLabels(
        name=hydra.job.override_dirname or "default",
        group=Path(hydra.sweep.dir).name if multirun else None,
        job_type="sweep" if multirun else "run",
        choices={
            str(group): str(choice)
            for group, choice in hydra.runtime.choices.items()
            if not str(group).startswith("hydra")
        },
    )


def _single(job: tuple[Path, Path]) -> int:
    run_dir, _ = job
    _hydra()
    if not _failure:
        return 0
    error = _failure[0]
    if isinstance(error, ConfigError):
        print(f"config error: {_one_line(error)}", file=sys.stderr)
        return 2
    print(
        f"run error: {_one_line(error)}; see {run_dir}/record.json and pai.log beside it; "
        f"the same command with hydra.run.dir={run_dir} continues",
        file=sys.stderr,
    )
    return 1


def _sweep(jobs: list[tuple[Path, Path]]) -> int:
    from pai.reports.sweep import sweep_table

    try:
        _hydra()
    except Exception as error:  # noqa: BLE001  (reported below, with all others of the sweep)
        _log.debug("a job failed: %s", error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except SystemExit as error:
        _log.debug("the sweep ends: %s", error)
    table, failed = sweep_table([run_dir for run_dir, _ in jobs])
    print(table)
    if failed:
        print(
            f"run error: {failed} of {len(jobs)} jobs are not done; the same command with "
            f"hydra.sweep.dir={jobs[0][1]} runs only those",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigError | RunError) else f"{type(error).__name__}: {text}"
