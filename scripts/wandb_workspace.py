"""Build a saved W&B workspace for the runs of a project: ``python scripts/wandb_workspace.py``.

It has the runs grouped by sweep, scorer and sparsity, accuracy against sparsity, time and epoch,
and a parallel-coordinates view. ``pip install 'pai[dashboard]'`` and ``wandb login`` come first.
"""

import argparse
import importlib
import os
import sys
import warnings
from typing import Any

AXES = ("scorer", "sparsity", "warmup", "model", "seed", "mask/effective_sparsity", "score_s",
        "train_s", "test_accuracy")  # fmt: skip
LOGARITHMIC = ("score_s", "train_s")
MOST_LINES = 100  # of a panel; W&B's own default of 10 would hide all further scorers and cells


def workspace(entity: str, project: str, name: str) -> Any:
    """Return the workspace; nothing is sent yet.

    Raises:
        ImportError: the extra is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package's own
        wr: Any = importlib.import_module("wandb_workspaces.reports.v2")
        ws: Any = importlib.import_module("wandb_workspaces.workspaces")

    def accuracy_against(key: str, **options: Any) -> Any:
        return wr.ScatterPlot(
            title=f"test accuracy against {key}",
            x=wr.SummaryMetric(key),
            y=wr.SummaryMetric("test_accuracy"),
            **options,
        )

    results = [
        wr.BarPlot(
            title="test accuracy (mean over seeds)",
            metrics=["test_accuracy"],
            groupby="choices.scorer",
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        ),
        accuracy_against("sparsity"),
        accuracy_against("score_s", log_x=True),
        accuracy_against("mask/effective_sparsity"),
        wr.ParallelCoordinatesPlot(
            title="from scorer to accuracy",
            columns=[
                wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(axis), log=axis in LOGARITHMIC)
                for axis in AXES
            ],
        ),
    ]
    training = [
        wr.LinePlot(title=key, x="epoch", y=[key], groupby="choices.scorer")
        for key in ("val/accuracy", "val/loss", "train/accuracy", "train/loss", "lr")
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name="Results", panels=results, is_open=True),
            ws.Section(name="Training", panels=training, is_open=True),
        ],
        settings=ws.WorkspaceSettings(max_runs=MOST_LINES),
        runset_settings=ws.RunsetSettings(
            # Panels average over the groups of the list: over seeds, not over sparsities.
            groupby=[ws.Metric("Group"), ws.Metric("JobType"), ws.Config("sparsity")],
            order=[ws.Ordering(ws.Summary("test_accuracy"), ascending=False)],
        ),
    )


def main() -> None:
    """Parse the command line, save the workspace and print its address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"))
    parser.add_argument("--project", default="pai")
    parser.add_argument("--name", default="pai: scorers and sparsities")
    arguments = parser.parse_args()
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    if not wandb.login(prompt=False, verify=False):
        sys.exit("wandb: not logged in; `wandb login`, or set WANDB_API_KEY")
    try:
        built = workspace(
            str(arguments.entity or wandb.Api().default_entity), arguments.project, arguments.name
        )
    except ImportError:
        sys.exit("wandb: needs the extra dashboard: pip install 'pai[dashboard]'")
    built.save()
    print(built.url)


if __name__ == "__main__":
    main()
