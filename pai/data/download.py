"""Downloads that either give a whole folder or leave nothing behind."""

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
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

    def unpack(scratch: Path) -> Path:
        from torchvision.datasets.utils import download_url

        download_url(url, scratch, "archive.zip", md5)
        with zipfile.ZipFile(scratch / "archive.zip") as archive:
            for name in archive.namelist():
                path = PurePosixPath(name.replace("\\", "/"))
                if path.parts[:1] != (folder.name,) or ".." in path.parts:
                    raise RunError(f"{url}: {name!r} does not belong in {folder.name}/")
            archive.extractall(scratch)
        return scratch / folder.name

    by_hand = f"unpack the archive in {folder.parent} by hand"
    _make(folder, unpack, fault=f"cannot download {url}", by_hand=by_hand)


def fetch_files(files: Mapping[str, str], folder: Path) -> None:
    """Make ``folder`` of the files at some addresses, given with their SHA-256.

    They are downloaded beside ``folder``, which is renamed at the end. An existing ``folder`` stays
    as it is; of several processes one downloads while the others wait.

    Raises:
        RunError: there is no network, or a file is another one than expected.
    """

    def gather(scratch: Path) -> Path:
        from torchvision.datasets.utils import download_url

        for url, digest in files.items():
            name = url.rpartition("/")[2]
            download_url(url, scratch, name)
            if hashlib.sha256((scratch / name).read_bytes()).hexdigest() != digest:
                raise RunError(f"{url} is not the file that was expected (SHA-256 {digest})")
        scratch.chmod(0o755)
        return scratch

    names = ", ".join(url.rpartition("/")[2] for url in files)
    by_hand = f"put the files {names} there by hand"
    _make(folder, gather, fault=f"cannot make {folder}", by_hand=by_hand)


def lock_of(folder: Path) -> FileLock:
    """Return the lock, beside ``folder``, of whoever makes it."""
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def _make(folder: Path, fill: Callable[[Path], Path], *, fault: str, by_hand: str) -> None:
    """Rename what ``fill`` makes in a scratch folder to ``folder``, unless that exists already.

    Args:
        folder: what is to be there in the end.
        fill: given the scratch folder, returns which folder in it, or itself, is the result.
        fault: how the message begins if that fails.
        by_hand: how the user can do it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock_of(folder):
            if folder.exists():
                return
            scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
            try:
                fill(scratch).rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except RunError:
        raise
    except (*DOWNLOAD_ERRORS, zipfile.BadZipFile) as error:
        raise RunError(f"{fault}: {reason(error)}; without a network, {by_hand}") from error
