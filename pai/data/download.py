"""Downloads that either give a whole folder or leave nothing behind."""

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError

from filelock import FileLock

from pai.errors import RunError

DOWNLOAD_ERRORS = (OSError, HTTPException, RuntimeError)  # what torchvision's downloads raise


def reason(error: Exception) -> str:
    """Return what went wrong with a download, without urllib's brackets around it."""
    if isinstance(error, URLError) and not isinstance(error, HTTPError):
        return str(error.reason)
    return str(error)


def fetch_zip(url: str, md5: str, folder: Path) -> None:
    """Make ``folder`` from the zip archive at ``url``, which contains it at its top.

    The archive is downloaded and unpacked beside ``folder`` and renamed at the end. An existing
    ``folder`` stays as it is; of several processes one downloads while the others wait.

    Raises:
        RunError: there is no network, the archive is damaged, or it would write outside.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():
                _fetch(url, md5, folder)
    except RunError:
        raise
    except (*DOWNLOAD_ERRORS, zipfile.BadZipFile) as error:
        raise RunError(
            f"cannot download {url}: {reason(error)}; without a network, unpack the archive in "
            f"{folder.parent} by hand"
        ) from error


def fetch_files(files: Mapping[str, str], folder: Path) -> None:
    """Make ``folder`` of the files at some addresses, given with their SHA-256.

    They are downloaded beside ``folder``, which is renamed at the end. An existing ``folder`` stays
    as it is; of several processes one downloads while the others wait.

    Raises:
        RunError: there is no network, or a file is another one than expected.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():
                _fetch_each(files, folder)
    except RunError:
        raise
    except DOWNLOAD_ERRORS as error:
        raise RunError(
            f"cannot make {folder}: {reason(error)}; without a network, put the files "
            f"{', '.join(url.rpartition('/')[2] for url in files)} there by hand"
        ) from error


def _fetch_each(files: Mapping[str, str], folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for url, digest in files.items():
            name = url.rpartition("/")[2]
            download_url(url, scratch, name)
            if hashlib.sha256((scratch / name).read_bytes()).hexdigest() != digest:
                raise RunError(f"{url} is not the file that was expected (SHA-256 {digest})")
        scratch.chmod(0o755)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fetch(url: str, md5: str, folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        download_url(url, scratch, "archive.zip", md5)
        with zipfile.ZipFile(scratch / "archive.zip") as archive:
            for name in archive.namelist():
                path = PurePosixPath(name.replace("\\", "/"))
                if path.parts[:1] != (folder.name,) or ".." in path.parts:
                    raise RunError(f"{url}: {name!r} does not belong in {folder.name}/")
            archive.extractall(scratch)
        (scratch / folder.name).rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
