"""The command ``pai``: Hydra's door. Everything is composed and checked before anything starts.

Exit codes: 0 done; 1 the work failed (the record says how); 2 the configuration is at fault.
"""

import argparse
import datetime
import errno
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pai.console import need_no_reader, one_line, shown
from pai.distributed import broadcast_object, is_main, launched, process_group, rank
from pai.errors import ConfigError, RunError, Stopped
from pai.paths import config_folder
from pai.version import __version__

if TYPE_CHECKING:
    from pai.compose import Job
    from pai.plan import Plan

_STARTED = datetime.datetime.now()


def main() -> None:
    """Run the command line and exit."""
    need_no_reader()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us instead of being printed
    # Idle OpenMP threads spin for a moment and then sleep. By default they spin for long, which on
    # a machine with other work slows a small network many times over.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "--version" in sys.argv[1:]:  # Hydra would tell its own
        print(f"pai {__version__}")
        return
    register_resolvers()
    if sys.argv[1:2] == ["cache"]:
        from pai.cache_command import main as cache

        sys.exit(cache(sys.argv[2:]))
    try:
        with process_group():
            code = _command(sys.argv[1:])
    except KeyboardInterrupt:  # later ones are handled where there is something to keep
        print("interrupted", file=sys.stderr)
        sys.exit(1)
    if not is_main():  # nothing is left to write; torch's threads can abort an ordinary exit
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _command(argv: list[str]) -> int:
    """Run the command line as the main process or as one that helps it; return the exit code."""
    try:
        arguments = _parse(argv)
        if _only_information(arguments):
            if is_main():
                _answer(arguments)
            return 0
        jobs, plans = _checked_jobs(arguments)
    except ConfigError as error:
        if is_main():
            print(f"config error: {_one_line(error)}", file=sys.stderr)
        return 2
    except RunError as error:  # a damaged file seen while checking; nothing has started
        print(f"run error: {_one_line(error)}", file=sys.stderr)
        return 1
    if not is_main():
        return 0 if arguments.dry_run else _assist()
    if arguments.dry_run:
        return _tell(jobs, plans)
    if launched() > 1:  # torchrun would end this process before it can say how the run failed
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        _stop_on(signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    code = _sweep(arguments, jobs) if arguments.multirun else _single(arguments, jobs[0])
    if code == 0:
        broadcast_object(None)
    return code


def _stop_on(*signals: signal.Signals) -> None:
    """Let these signals (Ctrl-C, the end of a job's time, preemption) end the run, once."""

    def stop(number: int, frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)  # what is left is writing the record
        signal.signal(signal.SIGINT, signal.default_int_handler)  # unless somebody insists
        raise Stopped(signal.Signals(number).name)

    for each in signals:
        signal.signal(each, stop)


def register_resolvers() -> None:
    """Register the OmegaConf resolvers that ``conf/config.yaml`` uses."""
    from omegaconf import OmegaConf

    from pai.launchers import jobs_at_once
    from pai.naming import folder_name

    OmegaConf.register_new_resolver("pai_now", _STARTED.strftime, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("pai_folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("pai_jobs_at_once", jobs_at_once, use_cache=True, replace=True)


def _parse(argv: list[str]) -> argparse.Namespace:
    from hydra._internal.utils import get_args_parser

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise ConfigError(f"command line: {message}; see pai --help")

    parser = get_args_parser()
    parser.add_argument("--dry-run", action="store_true")
    parser.__class__ = Parser
    arguments = parser.parse_intermixed_args(argv)
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


def _checked_jobs(arguments: argparse.Namespace) -> "tuple[list[Job], list[Plan]]":
    """Compose and validate every job."""
    from pai.compose import compose_jobs
    from pai.launchers import check_launcher
    from pai.plan import prepare
    from pai.run_directory import check_run_directory, directory_setting

    jobs = compose_jobs(arguments)
    if arguments.multirun:
        check_launcher(jobs[0].launcher)
    _check_own_directories(jobs)
    plans, setting = [], directory_setting(multirun=arguments.multirun)
    for job in jobs:
        plans.append(prepare(job.config))
        if is_main():
            check_run_directory(job.run_dir, job.config, setting)
    return jobs, plans


def _check_own_directories(jobs: "list[Job]") -> None:
    """Raise :class:`ConfigError` if two different jobs of a sweep have one directory."""
    by_folder: dict[Path, Job] = {}
    for job in jobs:
        first = by_folder.setdefault(job.run_dir, job)
        if first.config != job.config:
            raise ConfigError(
                f"hydra.sweep.subdir: the jobs {first.name} and {job.name} would share the "
                f"directory {job.run_dir}"
            )


def _hydra() -> None:
    import hydra

    folder = str(config_folder())
    hydra.main(version_base="1.3", config_path=folder, config_name="config")(_no_job)()


def _no_job(config: object) -> None:
    """Stand in for a job where Hydra only answers a question."""


def _assist() -> int:
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


def _tell(jobs: "list[Job]", plans: "list[Plan]") -> int:
    from pai.dry_run import describe

    print(shown(describe(jobs, plans)))
    return 0


def _sweep(arguments: argparse.Namespace, jobs: "list[Job]") -> int:
    from hydra.errors import HydraException

    from pai.sweep import run_sweep

    try:
        return run_sweep(arguments, jobs)
    except (OSError, HydraException, ConfigError) as error:
        return _failed_outside("hydra.sweep.dir", jobs[0].sweep_dir, error)


def _single(arguments: argparse.Namespace, job: "Job") -> int:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from pai.compose import opened
    from pai.job import Task

    task = Task()
    try:
        with opened(arguments) as (name, overrides):
            hydra: Any = GlobalHydra.instance().hydra
            hydra.run(name, task, [*overrides, "hydra.mode=RUN"])
    except (OSError, ValueError, HydraException) as error:
        return _failed_outside("hydra.run.dir", job.run_dir, error)
    if not task.failure:
        return 0
    failure = task.failure[0]
    if isinstance(failure, ConfigError):
        print(f"config error: {_one_line(failure)}", file=sys.stderr)
        return 2
    place = one_line(str(job.run_dir))
    then = (
        "the same command fails at the same step; another learning rate needs another hydra.run.dir"
        if isinstance(failure, RunError) and failure.repeats
        else f"the same command with hydra.run.dir={place} continues"
    )
    print(
        f"run error: {_one_line(failure)}; see {place}/record.json and pai.log beside it; {then}",
        file=sys.stderr,
    )
    return 1


def _failed_outside(setting: str, folder: Path, error: Exception) -> int:
    """Say what went wrong in what Hydra does around the jobs; return the exit code.

    It makes the directory that ``setting`` has chosen, opens the log, writes its files, and builds
    the callbacks that the user trusts.
    """
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # of logging
    if not isinstance(cause, OSError):
        print(f"config error: {one_line(str(error))}", file=sys.stderr)
        return 2
    full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
    kind = "run" if full else "config"
    print(f"{kind} error: {setting}: {one_line(f'{folder}: {cause}')}", file=sys.stderr)
    return 1 if full else 2


def _one_line(error: BaseException) -> str:
    text = one_line(str(error))
    return text if isinstance(error, ConfigError | RunError) else f"{type(error).__name__}: {text}"
