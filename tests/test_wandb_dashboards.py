"""The saved workspace and the sweep files, without a server."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import CHECKOUT, jobs, python

SWEEPS = sorted((CHECKOUT / "scripts" / "wandb_sweeps").glob("*.yaml"))


def test_the_workspace_has_the_views_of_accuracy() -> None:
    pytest.importorskip("wandb_workspaces")
    script = runpy.run_path(str(CHECKOUT / "scripts" / "wandb_workspace.py"))
    built = script["workspace"]("somebody", "pai", "a name")
    assert (built.entity, built.project, built.name) == ("somebody", "pai", "a name")
    text = str(built._to_model().model_dump())
    for key in ("sparsity", "scorer", "test_accuracy", "score_s", "val/accuracy", "epoch"):
        assert key in text
    assert len(built.sections) == 2


def test_without_a_login_the_script_says_so_in_one_line(tmp_path: Path) -> None:
    done = python(
        str(CHECKOUT / "scripts" / "wandb_workspace.py"), cwd=tmp_path,
        NETRC=str(tmp_path / "no-netrc"), HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("wandb: not logged in")


def values(parameter: dict[str, Any]) -> list[Any]:
    found = parameter.get("values") or [parameter.get("value", parameter.get("min"))]
    return list(found)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweep_files_drive_pai(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["command"] == ["pai", "${args_no_hyphens}"]
    overrides = [f"{key}={values(p)[0]}" for key, p in content["parameters"].items()]
    (job,) = jobs(*overrides)
    assert job.config["sparsity"] == values(content["parameters"]["sparsity"])[0]
    assert re.fullmatch("[a-z_]+", content["metric"]["name"])
