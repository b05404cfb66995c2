from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pai.cache import cached
from pai.cache_command import folder, main
from pai.paths import config_folder


def test_size_is_reported_and_entries_are_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAI_CACHE", str(tmp_path))
    for key in ("a", "b"):
        cached(tmp_path, 64 * key, {"x": (3,)}, lambda: {"x": torch.zeros(3)})
    others = ["mine.txt", "model.safetensors", "mask.safetensors", ".lock"]
    for name in others:  # a cache in a run directory
        (tmp_path / name).write_text("not an entry")
    assert main([]) == 0
    assert f"{tmp_path}: 2 entries, 0.00 GiB" in capsys.readouterr().out
    assert main(["--clear"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    assert main(["--dir", str(tmp_path / "missing")]) == 0
    assert "0 entries" in capsys.readouterr().out


def test_a_folder_that_is_named_like_an_entry_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ending in ("safetensors", "lock"):
        (tmp_path / f"{64 * 'a'}.{ending}").mkdir()
    assert main(["--clear", "--dir", str(tmp_path)]) == 0
    assert f"{tmp_path}: 0 entries" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["PAI_CACHE", "XDG_CACHE_HOME"])
def test_the_home_of_nobody_is_one_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAI_CACHE", raising=False)
    monkeypatch.setenv(name, "~nouser/x")
    assert main([]) == 2
    line = f"config error: {name}: '~nouser/x': there is no such home directory\n"
    assert capsys.readouterr().err == line


def test_entries_that_cannot_be_removed_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / f"{64 * 'a'}.safetensors").touch()
    monkeypatch.setattr(Path, "unlink", refuse)
    assert main(["--clear", "--dir", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run error: the cache: [Errno 13] Permission denied: ")


@pytest.mark.parametrize(
    "variables", [{}, {"XDG_CACHE_HOME": "/x"}, {"PAI_CACHE": "/p", "XDG_CACHE_HOME": "/x"}]
)
def test_the_folder_is_the_default_of_the_configuration(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PAI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for path, key in (
        ("config.yaml", "scoring.cache_dir"),
        ("dataset/imagefolder.yaml", "cache_dir"),
    ):
        configured = OmegaConf.select(OmegaConf.load(config_folder() / path), key)
        assert folder() == Path(configured).expanduser()
