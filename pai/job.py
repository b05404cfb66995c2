"""One job as Hydra's launchers run it, in this process or in another one."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pai.compose import SCHEMA_WARNING
from pai.console import need_no_reader, shown
from pai.distributed import broadcast_object, launched

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pai.tracking.base import RunLabels

_TAGS = ("dataset", "model", "scorer", "warmup")
_log = logging.getLogger("pai")


@dataclass
class Task:
    """The function that a launcher calls for each job; it may be pickled to other processes.

    Returns the best validation accuracy, for sweepers that search. In a sweep an exception leaves
    the call; of a single run it is kept in ``failure``.
    """

    folder: str = field(default_factory=os.getcwd)
    failure: list[BaseException] = field(default_factory=list)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepare the process that a launcher has sent the task to."""
        self.__dict__.update(state)
        need_no_reader()
        warnings.filterwarnings("ignore", message=SCHEMA_WARNING)

    def __call__(self, config: "DictConfig") -> float | None:
        """Run the job in the directory that Hydra has made for it."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        from pai.reports.summary import one_line, summarise

        logging.captureWarnings(True)
        logging.raiseExceptions = False  # a full disk is told by what writes the record, once
        hydra = HydraConfig.get()
        multirun = hydra.mode == RunMode.MULTIRUN
        try:
            os.chdir(self.folder)  # another process may have started elsewhere
            run_dir = Path(hydra.runtime.output_dir)
            resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            labels = _labels(hydra, resolved, multirun=multirun)
            record = _run(resolved, run_dir, labels, multirun)
            told = one_line(record, run_dir) if multirun else summarise(record, run_dir)
            print(shown(told), flush=True)
        except (Exception, KeyboardInterrupt) as error:
            _log.debug("the run failed", exc_info=True)  # to the log file
            if multirun and launched() > 1:  # the other processes are in an unknown state
                raise SystemExit(1) from error
            if multirun:
                raise
            self.failure.append(error)
            return None
        accuracy: float = record["metrics"]["best_val_accuracy"]
        return accuracy


def _run(
    config: dict[str, Any], run_dir: Path, labels: "RunLabels", multirun: bool
) -> dict[str, Any]:
    from pai.launchers import use_own_threads
    from pai.plan import prepare
    from pai.run_directory import directory_setting
    from pai.runner import run

    use_own_threads()
    with _own_device(config, multirun=multirun):
        plan = prepare(config)
        broadcast_object(config)
        return run(plan, run_dir, labels, directory_setting(multirun=multirun))


@contextlib.contextmanager
def _own_device(config: dict[str, Any], *, multirun: bool) -> Iterator[None]:
    """Hold a GPU for a job of a sweep that asks for any."""
    from pai.gpus import JOBS_PER_GPU, a_gpu, jobs_per_gpu, lock_folder, visible_gpus

    if not multirun or launched() > 1 or config["device"] != "auto":
        yield
        return
    wait = f"all GPUs have jobs; waiting for one ({JOBS_PER_GPU}=2 lets two jobs share one)"
    with a_gpu(visible_gpus(), lock_folder(), jobs_per_gpu(), lambda: _log.info(wait)) as number:
        if number is None:
            yield
            return
        import torch

        with torch.cuda.device(number):
            yield


def _labels(hydra: Any, config: dict[str, Any], *, multirun: bool) -> "RunLabels":
    from pai.naming import run_name
    from pai.tracking.base import RunLabels

    choices = {
        str(group): str(choice)
        for group, choice in hydra.runtime.choices.items()
        if not str(group).startswith("hydra")
    }
    scorer = choices.get("scorer", "own")  # not there if the node itself was given
    sweep = Path(hydra.sweep.dir).name if multirun else None
    return RunLabels(
        name=hydra.job.override_dirname or "default",
        title=run_name(scorer, config["sparsity"], config["seed"],
                       list(hydra.overrides.task)),
        group=choices.get("experiment") or sweep,
        job_type=scorer,
        choices=choices,
        tags=tuple(choices[key] for key in _TAGS if key in choices),
    )  # fmt: skip
