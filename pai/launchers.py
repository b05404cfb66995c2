"""The launchers of sweeps: which package each needs, how many jobs run at once, on what threads."""

import importlib.util
import os
import re
import shutil

from pai.errors import ConfigError
from pai.processors import cores
from pai.submitted import SLURM

_EXTRAS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    SLURM: ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "ray_cluster": ("hydra_plugins.hydra_ray_launcher", "ray"),
}
MOST_THREADS = 4096


def check_launcher(name: str) -> None:
    """Raise :class:`ConfigError` with what installs or provides what a launcher needs."""
    package, extra = _EXTRAS.get(name, ("hydra", ""))
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even hydra_plugins
        found = False
    if not found:
        raise ConfigError(
            f"hydra/launcher: {name} needs an extra that is not installed: "
            f"pip install 'pai[{extra}]', or choose basic"
        )
    if name == SLURM and shutil.which("sbatch") is None:
        raise ConfigError(
            f"hydra/launcher: {SLURM} needs SLURM's command sbatch, which is not on this "
            "machine; start from a login node, or choose joblib"
        )


def jobs_at_once() -> int:
    """Return a good number of concurrent jobs: one per GPU, or per processor if there is none."""
    import torch

    from pai.gpus import jobs_per_gpu

    gpus = torch.cuda.device_count()
    return gpus * jobs_per_gpu() if gpus else cores()


def use_own_threads() -> None:
    """Let torch compute on the threads that the launcher has set aside for a job.

    Raises:
        ConfigError: the variable that says how many is no number that torch could take.
    """
    name = "OMP_NUM_THREADS" if os.environ.get("OMP_NUM_THREADS") else "SLURM_CPUS_PER_TASK"
    text = os.environ.get(name, "")
    if text.isdecimal():
        if not is_number_of_threads(text):
            raise ConfigError(f"{name}: {text} is no number from 1 to {MOST_THREADS}")
        import torch

        if torch.get_num_threads() != int(text):
            torch.set_num_threads(int(text))


def is_number_of_threads(text: str) -> bool:
    """Return whether ``text`` is a number of threads that a machine can be asked for."""
    return re.fullmatch("[0-9]{1,9}", text) is not None and 1 <= int(text) <= MOST_THREADS
