"""The wheel: complete, installable, and a working program far from the checkout."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny import CHECKOUT, TINY, environment, record_in

pytestmark = pytest.mark.slow
UV = [sys.executable, "-m", "uv"]


def call(*arguments: str, cwd: Path, **variables: str) -> str:
    """Run a command that must succeed and return its output."""
    done = subprocess.run(
        arguments, cwd=cwd, env=environment(**variables), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(*UV, "build", "--wheel", "--out-dir", str(folder), str(CHECKOUT), cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("site")
    install = ["pip", "install", "--no-deps", "--python", sys.executable, "--target", str(folder)]
    call(*UV, *install, str(wheel), cwd=folder)
    return folder


def below(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


def test_the_wheel_has_every_module_and_every_setting_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"pai/{name}" for name in below(CHECKOUT / "pai", "*.py")}
    settings = {f"pai/conf/{name}" for name in below(CHECKOUT / "conf", "*.yaml")}
    templates = {f"pai/{name}" for name in below(CHECKOUT / "pai", "*.j2")}
    assert len(templates) == 2
    assert modules | settings | templates | {"pai/py.typed"} == {
        n for n in names if n.startswith("pai/")
    }
    assert all(".dist-info/" in name for name in names if not name.startswith("pai/"))


def test_the_wheel_names_its_command_and_its_licence(wheel: Path) -> None:
    content = zipfile.ZipFile(wheel)
    texts = {name.partition("/")[2]: content.read(name).decode() for name in content.namelist()
             if ".dist-info/" in name}  # fmt: skip
    assert "pai = pai.cli:main" in texts["entry_points.txt"]
    assert texts["licenses/LICENSE"].strip()
    assert "Requires-Python: <3.14,>=3.11" in texts["METADATA"]


def test_the_installed_program_runs_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    where = "import pai, pai.paths; print(pai.__file__); print(pai.paths.config_folder())"
    found = call(sys.executable, "-P", "-c", where, cwd=tmp_path, PYTHONPATH=str(site))
    assert found.splitlines() == [str(site / "pai" / "__init__.py"), str(site / "pai" / "conf")]

    run = [sys.executable, "-P", "-m", "pai", *TINY, "hydra.run.dir=out"]
    summary = call(*run, cwd=tmp_path, PYTHONPATH=str(site))
    assert "accuracy" in summary
    record = record_in(tmp_path / "out")
    assert record["status"] == "completed"
    assert record["environment"]["git_sha"] is None  # not the checkout's: it did not run
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_installed_package_is_typed(site: Path) -> None:
    assert (site / "pai" / "py.typed").exists()


def test_the_sdist_has_every_tracked_file_and_makes_the_same_wheel(
    wheel: Path, tmp_path: Path
) -> None:
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "-C", str(CHECKOUT), "ls-files", "--exclude-standard", "--cached"]
    tracked, there = (
        set(call(*listing, *others, cwd=tmp_path).splitlines()) for others in ([], ["--others"])
    )
    call(*UV, "build", "--sdist", "--out-dir", str(tmp_path), str(CHECKOUT), cwd=tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {entry.name.partition("/")[2] for entry in content if entry.isfile()}
        content.extractall(tmp_path / "there", filter="data")
    assert tracked - {".ci/run"} <= names - {"PKG-INFO"} <= there
    (source,) = (tmp_path / "there").iterdir()
    call(*UV, "build", "--wheel", "--out-dir", str(tmp_path), str(source), cwd=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    assert _checksums(again) == _checksums(wheel)


def _checksums(archive: Path) -> dict[str, int]:
    return {entry.filename: entry.CRC for entry in zipfile.ZipFile(archive).infolist()}
