"""The short summary of one run for the screen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pai.reports.numbers import share

_BAR = 20


def summarise(record: Mapping[str, Any], run_dir: Path) -> str:
    """Return counts, per-layer density, accuracy, times and the place of the files."""
    config, mask, metrics = record["config"], record["mask"], record["metrics"]
    times = record["timing_s"]
    lines = [_layers(mask), ""]
    dense = mask["kept"] == mask["prunable"]
    kind = "effective " if config["sparsity_is"] == "effective" else ""
    asked = f"sparsity {share(mask['sparsity'], 4)}, asked {kind}{config['sparsity']:g}"
    asked = "dense" if dense else asked
    lines.append(
        f"weights    {mask['kept']:,} of {mask['prunable']:,} prunable kept ({asked}); "
        f"{mask['all_parameters']:,} parameters in all"
    )
    cost = record["cost"]
    lines.append(
        f"cost       {cost['forward_flops_masked'] / 1e6:,.2f} of "
        f"{cost['forward_flops_dense'] / 1e6:,.2f} MFLOPs per forward pass of one sample, if zeros "
        f"cost nothing"
    )
    if cost.get("uncounted"):  # older records lack it
        names = ", ".join(cost["uncounted"])
        lines.append(f"WARNING    MORE FLOPS: there is no formula for what is done with {names}")
    spent = record.get("baseline") or {}
    if spent.get("steps"):
        lines.append(
            f"before     {spent['steps']:,} steps ({spent['epochs']:.3g} epochs) of training in "
            f"{len(spent['rounds'])} rounds ({spent['training_flops_dense'] / 1e9:,.2f} GFLOPs) "
            f"before the mask"
        )
    lines += _paths(mask)
    when = (
        f"after the last epoch, {metrics['best_val_test_accuracy']:.2%} at the best validation "
        f"epoch ({metrics['best_val_epoch']})"
    )
    if metrics["best_val_epoch"] == 0:
        when = "without training of what is left"
    lines.append(
        f"accuracy   test {metrics['test_accuracy']:.2%} {when}; "
        f"validation {metrics['val_accuracy']:.2%}"
    )
    if "test_perplexity" in metrics:
        lines.append(
            f"perplexity test {metrics['test_perplexity']:.3f} after the last epoch, "
            f"{metrics['best_val_test_perplexity']:.3f} at the best validation epoch; validation "
            f"{metrics['val_perplexity']:.3f}"
        )
    parts = ", ".join(
        f"{key} {times[key]:.1f}"
        for key in ("data", "warmup", "pretrain", "score", "mask", "report", "train")
        if key in times
    )
    lines.append(f"seconds    {times['total']:.1f} in all: {parts}")
    lines.append(f"files      {run_dir}")
    return "\n".join(lines)


def _paths(mask: Mapping[str, Any]) -> list[str]:
    """Return what the paths from input to output are like: effective sparsity and warnings."""
    lines = []
    if mask["effective_sparsity"] is not None:
        lines.append(
            f"effective  sparsity {share(mask['effective_sparsity'], 4)}: weights on no path from "
            f"input to output count as removed"
        )
    else:
        lines.append(f"effective  sparsity not defined: {mask['effective_undefined']}")
    if mask["collapsed_layers"]:
        names = ", ".join(mask["collapsed_layers"])
        lines.append(f"WARNING    LAYER COLLAPSE: {names} lost every weight")
    if mask["dead_layers"] and not mask["cut_at"]:  # else all layers are dead
        names = ", ".join(mask["dead_layers"])
        lines.append(f"WARNING    DEAD LAYERS: {names} kept weights, but none on a path")
    if mask["cut_at"]:
        lines.append(
            f"WARNING    THE NETWORK IS CUT: no signal from the input passes {mask['cut_at']}"
        )
    return lines


def _layers(mask: Mapping[str, Any]) -> str:
    width = max(len(layer["name"]) for layer in mask["layers"])
    rows = [f"{'layer':{width}}  {'kept':>10} {'of':>10}  density"]
    for layer in mask["layers"]:
        bar = "#" * round(_BAR * layer["density"])
        density = f"{share(100 * layer['density'], 2, whole=100)}%"
        note = "  COLLAPSED" if layer["kept"] == 0 else ""
        rows.append(
            f"{layer['name']:{width}}  {layer['kept']:>10,} {layer['total']:>10,}  "
            f"{density:>7} {bar}{note}"
        )
    return "\n".join(rows)


def one_line(record: Mapping[str, Any], run_dir: Path) -> str:
    """Return the result of one job of a sweep."""
    metrics, mask = record["metrics"], record["mask"]
    return (
        f"{record['name']}: test {metrics['test_accuracy']:.2%}, sparsity "
        f"{share(mask['sparsity'], 4)}, {record['timing_s']['total']:.1f} s, {run_dir}"
    )
