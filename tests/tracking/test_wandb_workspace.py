"""The saved workspace names only what runs log: its request beside an offline run."""

import contextlib
import io
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from tiny import CHECKOUT, plan
from wandb_runs import history, isolate, read, runs_in, summary

from pai.runner import run
from pai.tracking.base import RunLabels
from pai.tracking.wandb import WandbTracker

pytest.importorskip("wandb_workspaces")
CHOICES = {"dataset": "digits", "model": "resnet20", "scorer": "snip", "warmup": "bn_stats"}


class Server:
    """Stands for W&B's API and keeps what it is asked."""

    def __init__(self) -> None:
        self.default_entity = "somebody"
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._service_api = SimpleNamespace(
            execute_graphql=self._answer, app_url="https://wandb.example"
        )

    def _answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.requests.append((query, variables))
        return {"upsertView": {"view": {"id": "1", "name": "nw-new"}}}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Return what the script sends."""
    isolate(monkeypatch, tmp_path)
    server = Server()
    monkeypatch.setattr(wandb, "Api", lambda: server)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(sys, "argv", ["wandb_workspace.py", "--project", "mine"])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(CHECKOUT / "scripts" / "wandb_workspace.py"), run_name="__main__")
    assert printed.getvalue() == "https://wandb.example/somebody/mine?nw=new\n"
    ((query, sent),) = server.requests
    assert "upsertView" in query
    return sent


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    """Return what a tiny run leaves for W&B."""
    folder = tmp_path_factory.mktemp("wandb")
    labels = RunLabels(name="", group="a sweep", job_type="snip", choices=CHOICES)
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, folder / "home")
        tracker = WandbTracker(project="trial", mode="offline")
        run(plan("scorer=snip", tracker=tracker), folder / "run", labels)
    (written,) = runs_in(folder / "run")
    yield read(written)


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    sections = spec["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


def in_config(records: dict[str, list[Any]], path: str) -> bool:
    """Return whether a run's configuration has ``path``, in which W&B writes its ``value``."""
    node = records["run"][0]["config"]["update"]
    for part in path.split("."):
        if part == "value":
            continue
        if part not in node:
            return False
        node = node[part]
    return True


def test_the_request_is_a_view_of_the_project(variables: dict[str, Any]) -> None:
    assert (variables["entityName"], variables["projectName"]) == ("somebody", "mine")
    assert (variables["type"], variables["displayName"]) == (
        "project-view", "pai: scorers and sparsities",
    )  # fmt: skip
    assert "id" not in variables


def test_every_panel_names_what_runs_log(
    variables: dict[str, Any], logged: dict[str, list[Any]]
) -> None:
    spec = json.loads(variables["spec"])
    kinds = [panel["viewType"] for panel in panels(spec)]
    assert kinds.count("Scatter Plot") == 3
    assert kinds.count("Run History Line Plot") == 5
    assert {"Bar Chart", "Parallel Coordinates Plot"} <= set(kinds)
    final = summary(logged)
    for panel in panels(spec):
        config = panel["config"]
        if panel["viewType"] == "Run History Line Plot":
            names = {config["xAxis"], *config["metrics"]}
            assert any(names <= row.keys() for row in history(logged)), config
        else:
            axes = [config.get("xAxis"), config.get("yAxis"), *config.get("metrics", [])]
            axes += [column["accessor"] for column in config.get("columns", [])]
            for axis in filter(None, axes):
                assert axis.removeprefix("summary:") in final, config
        if "groupBy" in config:
            assert in_config(logged, config["groupBy"]), config


def test_panels_average_over_seeds_only(
    variables: dict[str, Any], logged: dict[str, list[Any]]
) -> None:
    (runs,) = json.loads(variables["spec"])["section"]["runSets"]
    grouping = [(key["section"], key["name"]) for key in runs["grouping"]]
    assert grouping[:2] == [("run", "group"), ("run", "jobType")]
    ((section, path),) = grouping[2:]
    assert section == "config"
    assert in_config(logged, path)
    (order,) = runs["sort"]["keys"]
    assert order["key"]["name"] in summary(logged)
