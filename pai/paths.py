"""Where the YAML files are: inside the installed package, or beside it in a checkout."""

from pathlib import Path


def config_folder() -> Path:
    """Return the absolute path of ``conf``."""
    here = Path(__file__).resolve().parent
    installed = here / "conf"
    return installed if installed.is_dir() else here.parent / "conf"
