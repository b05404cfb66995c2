"""Whole runs on the digits: what the record and the files say is what happened."""

import hashlib
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import CHECKOUT, plan, record_in, tiny_run, untimed
from torch import Tensor, nn

import pai.training.loop
from pai.errors import ConfigError
from pai.scorers.base import Scorer
from pai.scorers.magnitude import Magnitude

PRUNABLE = 36 + 2 * 144 + 288 + 576 + 32 + 1152 + 2304 + 128  # resnet depth 8, width 4
EVERYTHING = PRUNABLE + 2 * (3 * 4 + 3 * 8 + 3 * 16) + 16 * 10 + 10


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a completed run."""
    folder = tmp_path_factory.mktemp("runs") / "deep" / "inside"
    tiny_run(folder, "scorer=snip", "training.epochs=2")
    return folder


@pytest.fixture(scope="module")
def record(run_dir: Path) -> dict[str, Any]:
    return record_in(run_dir)


def masks(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "mask.safetensors")


def test_a_completed_run_leaves_its_record_mask_and_model_only(run_dir: Path) -> None:
    assert {path.name for path in run_dir.iterdir()} == {
        "record.json", "mask.safetensors", "model.safetensors", "scores.json",
    }  # fmt: skip


def test_the_record_says_what_was_asked_and_how_it_ended(record: dict[str, Any]) -> None:
    assert record["status"] == "completed"
    assert record["error"] is None
    assert record["seed"] == 0
    assert record["config"] == plan("scorer=snip", "training.epochs=2").config


def test_metrics_are_fractions_and_belong_to_the_history(record: dict[str, Any]) -> None:
    metrics, history = record["metrics"], record["history"]
    assert [row["epoch"] for row in history] == [1, 2]
    for key, value in metrics.items():
        if key.endswith("accuracy"):
            assert 0 <= value <= 1
        elif key.endswith("loss"):
            assert value > 0
    assert metrics["test_accuracy"] > 0.2  # chance is 0.1
    accuracies = [row["val_accuracy"] for row in history]
    assert metrics["val_accuracy"] == accuracies[-1]
    assert metrics["best_val_accuracy"] == max(accuracies)
    assert metrics["best_val_epoch"] == 1 + accuracies.index(max(accuracies))
    for part, size in (("test", 359), ("val", 143)):
        correct = metrics[f"{part}_accuracy"] * size
        assert correct == pytest.approx(round(correct), abs=1e-9)


def test_the_splits_are_all_the_digits(record: dict[str, Any]) -> None:
    data = record["data"]
    assert data["train"] + data["val"] + data["test"] == 1797
    assert data["scoring"] == 2 * 10


def test_the_shape_of_the_images_is_told_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pai")
    record = tiny_run(tmp_path, "training.epochs=1")
    assert record["data"]["spec"] == {
        "num_classes": 10, "channels": 1, "height": 8, "width": 8, "smallest_class": 125,
        "train_images": 1295,
    }  # fmt: skip
    (line,) = (text for text in caplog.messages if text.startswith("data: "))
    assert line.endswith("20 scoring; images of 1x8x8 (dataset.image_size)")
    (remark,) = (text for text in caplog.messages if "rises until the training ends" in text)
    assert "warmup_epochs=1 of training.epochs=1" in remark


def test_a_warmup_that_does_not_say_what_it_did_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^warmup\._target_: .* returns a NoneType where a"):
        tiny_run(tmp_path, warmup=lambda model, batches: None)
    assert record_in(tmp_path)["status"] == "failed"


def test_the_mask_counts_are_those_of_the_mask_file(run_dir: Path, record: dict[str, Any]) -> None:
    mask, described = masks(run_dir), record["mask"]
    assert all(keep.dtype == torch.bool for keep in mask.values())
    assert {layer["name"]: layer["kept"] for layer in described["layers"]} == {
        name: int(keep.sum()) for name, keep in mask.items()
    }
    assert {layer["name"]: layer["total"] for layer in described["layers"]} == {
        name: keep.numel() for name, keep in mask.items()
    }
    for layer in described["layers"]:
        assert layer["density"] == layer["kept"] / layer["total"]
        assert 0 <= layer["effective_kept"] <= layer["kept"]
    assert described["prunable"] == PRUNABLE
    assert described["all_parameters"] == EVERYTHING
    assert described["kept"] == round(0.1 * PRUNABLE)
    assert described["sparsity"] == pytest.approx(1 - described["kept"] / PRUNABLE)
    removed = PRUNABLE - described["kept"]
    assert described["sparsity_all_parameters"] == pytest.approx(removed / EVERYTHING)
    assert described["sparsity"] <= described["effective_sparsity"] <= 1
    assert described["collapsed_layers"] == [
        name for name, keep in mask.items() if not keep.any()
    ]  # fmt: skip


def test_the_cost_is_that_of_the_masked_network(record: dict[str, Any]) -> None:
    cost, mask = record["cost"], record["mask"]
    assert cost["parameters_dense"] == EVERYTHING
    assert cost["parameters_kept"] == EVERYTHING - PRUNABLE + mask["kept"]
    sides = {"conv1": 8, "stages.0": 8, "stages.1": 4, "stages.2": 2}  # of the output
    flops = {
        layer["name"]: 2 * layer["total"] * side**2
        for layer in mask["layers"]
        for start, side in sides.items()
        if layer["name"].startswith(start)
    }
    classifier = 2 * 16 * 10
    assert cost["forward_flops_dense"] == sum(flops.values()) + classifier
    kept = sum(flops[layer["name"]] * layer["density"] for layer in mask["layers"])
    assert cost["forward_flops_masked"] == round(kept + classifier)


def test_the_hash_is_that_of_the_bits(run_dir: Path, record: dict[str, Any]) -> None:
    digest = hashlib.sha256()
    for name, keep in sorted(masks(run_dir).items()):
        digest.update(f"{name}{tuple(keep.shape)}".encode())
        digest.update(bytes(keep.flatten().to(torch.uint8).tolist()))
    assert record["mask"]["sha256"] == digest.hexdigest()


def test_pruned_weights_are_exactly_zero_and_the_others_trained(run_dir: Path) -> None:
    weights, mask = load_file(run_dir / "model.safetensors"), masks(run_dir)
    for name, keep in mask.items():
        assert torch.all(weights[name][~keep] == 0)
        assert torch.all(weights[name][keep] != 0)
    assert sum(w.numel() for n, w in weights.items() if "running" not in n and w.ndim) == EVERYTHING


def test_the_model_file_has_the_recorded_test_accuracy(
    run_dir: Path, record: dict[str, Any]
) -> None:
    tiny = plan("scorer=snip", "training.epochs=2")
    model = tiny.build_model()
    data: Any = tiny.dataset.load()
    model.load_state_dict(load_file(run_dir / "model.safetensors"))
    images = data.test.images.float() / 255
    images = (images - data.mean.view(1, -1, 1, 1)) / data.std.view(1, -1, 1, 1)
    with torch.no_grad():
        logits = model.eval()(images)
    accuracy = (logits.argmax(1) == data.test.labels).double().mean()
    assert float(accuracy) == pytest.approx(record["metrics"]["test_accuracy"], abs=0.5 / 359)
    loss = nn.functional.cross_entropy(logits, data.test.labels)
    assert float(loss) == pytest.approx(record["metrics"]["test_loss"], rel=1e-4)


def test_the_best_epoch_is_reported_and_the_last_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pai.training.loop._train_epoch

    def forget_in_the_last_epoch(model: nn.Module, *rest: Any) -> Any:
        result = real(model, *rest)
        if rest[-1] == 2:
            model.fc.weight.data.zero_()  # type: ignore[union-attr, operator]
        return result

    monkeypatch.setattr(pai.training.loop, "_train_epoch", forget_in_the_last_epoch)
    record = tiny_run(tmp_path, "training.epochs=3", "sparsity=0.5")
    metrics, accuracies = record["metrics"], [row["val_accuracy"] for row in record["history"]]
    assert metrics["val_accuracy"] == accuracies[2] < max(accuracies)
    assert metrics["best_val_accuracy"] == max(accuracies)
    assert metrics["best_val_epoch"] == 1 + accuracies.index(max(accuracies))
    assert metrics["best_val_test_accuracy"] > metrics["test_accuracy"]
    assert metrics["best_val_test_loss"] < metrics["test_loss"]
    assert not load_file(tmp_path / "model.safetensors")["fc.weight"].any()


def test_times_are_seconds_that_add_up(record: dict[str, Any]) -> None:
    clock = record["timing_s"]
    assert set(clock) >= {"data", "warmup", "score", "mask", "report", "train", "total"}
    assert all(seconds >= 0 for seconds in clock.values())
    parts = sum(seconds for key, seconds in clock.items() if key != "total")
    assert 0.5 * clock["total"] < parts <= clock["total"]


def test_the_environment_is_this_one(record: dict[str, Any]) -> None:
    environment = record["environment"]
    assert environment["packages"]["pai"] == pai.__version__
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["device"] == "cpu"
    assert environment["threads"] == torch.get_num_threads()
    assert 0.05 < record["peak_memory_gib"] < 64
    if (CHECKOUT / ".git").exists():
        git = ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"]
        head = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        assert environment["git_sha"] == head
        assert environment["git_dirty"] in (True, False)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.999, 0.99999])
def test_global_masks_keep_exactly_the_asked_number(sparsity: float, tmp_path: Path) -> None:
    record = tiny_run(tmp_path, f"sparsity={sparsity}", "training.epochs=0")
    assert record["mask"]["kept"] == max(1, round((1 - sparsity) * PRUNABLE))


def test_layerwise_masks_keep_the_same_fraction_of_each_layer_and_exactly_the_total(
    tmp_path: Path,
) -> None:
    record = tiny_run(tmp_path, "sparsity=0.98", "scope=layer", "training.epochs=0")
    assert record["mask"]["kept"] == round(0.02 * PRUNABLE)
    for layer in record["mask"]["layers"]:
        assert abs(layer["kept"] - 0.02 * layer["total"]) < 1
    assert record["mask"]["collapsed_layers"] == []


def test_the_budgets_of_another_run_are_copied_from_its_directory(tmp_path: Path) -> None:
    first = tiny_run(tmp_path / "first", "training.epochs=0")["mask"]
    copy = tiny_run(
        tmp_path / "copy", "scorer=random", f"scope={tmp_path / 'first'}", "training.epochs=0"
    )["mask"]
    assert copy["sha256"] != first["sha256"]
    assert [layer["kept"] for layer in copy["layers"]] == [
        layer["kept"] for layer in first["layers"]
    ]


def test_semi_structured_masks_have_their_pattern_and_dense_layers_are_recorded(
    tmp_path: Path,
) -> None:
    record = tiny_run(
        tmp_path, "scope=2:4", "sparsity=0.5", "scorer=synflow", "schedule.rounds=3",
        "training.epochs=1",
    )  # fmt: skip
    weights = load_file(tmp_path / "model.safetensors")
    for layer in record["mask"]["layers"]:
        rows = (weights[layer["name"]] != 0).movedim(1, -1)
        if layer["name"] == "conv1.weight":  # one channel, 9 positions
            assert layer["density"] == 1
        else:
            assert torch.all(rows.reshape(-1, 4).sum(1) == 2)
    assert record["mask"]["kept"] == 36 + (PRUNABLE - 36) // 2


def test_the_classifier_is_pruned_only_if_asked(tmp_path: Path, record: dict[str, Any]) -> None:
    with_it = tiny_run(tmp_path, "include_classifier=true", "training.epochs=0")["mask"]
    assert with_it["prunable"] == PRUNABLE + 160
    assert "fc.weight" in {layer["name"] for layer in with_it["layers"]}
    assert "fc.weight" not in {layer["name"] for layer in record["mask"]["layers"]}


def test_the_dense_reference_keeps_everything_whatever_the_sparsity(tmp_path: Path) -> None:
    record = tiny_run(tmp_path, "scorer=none", "sparsity=0.9")
    assert record["mask"]["kept"] == record["mask"]["prunable"] == PRUNABLE
    assert record["mask"]["sparsity"] == record["mask"]["sparsity_all_parameters"] == 0.0
    assert all(keep.all() for keep in masks(tmp_path).values())
    assert record["timing_s"]["score"] == 0


def test_layer_collapse_is_warned_about_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pai"):
        record = tiny_run(tmp_path, "sparsity=0.999", "training.epochs=0")
    collapsed = [name for name, keep in masks(tmp_path).items() if not keep.any()]
    assert record["mask"]["kept"] == 5
    assert len(collapsed) >= 4
    assert record_in(tmp_path)["mask"]["collapsed_layers"] == collapsed
    (warning,) = [line for line in caplog.messages if "LAYER COLLAPSE" in line]
    assert all(name in warning for name in collapsed)


def test_no_collapse_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="pai"):
        tiny_run(tmp_path, "sparsity=0.5", "training.epochs=0")
    assert "COLLAPSE" not in caplog.text


STOCHASTIC = [
    "scorer=hts",
    "scorer.num_probes=1",
    "scorer.batch_size=null",
    "dataset.crop_padding=1",
]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    first = tiny_run(tmp_path / "a", *STOCHASTIC)
    torch.manual_seed(99)  # the state of the global generator is none of the run's business
    torch.rand(7)
    second = tiny_run(tmp_path / "b", *STOCHASTIC)
    other = tiny_run(tmp_path / "c", *STOCHASTIC, "seed=1")
    for key in ("metrics", "mask", "data"):
        assert first[key] == second[key]
    assert untimed(first["history"]) == untimed(second["history"])
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert models[0] == models[1] != models[2]
    assert first["mask"]["sha256"] != other["mask"]["sha256"]
    assert first["metrics"] != other["metrics"]


def test_a_run_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny_run(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_probes_do_not_change_the_initial_weights_or_the_data_order(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Spy(Scorer):
        def score(self, model: nn.Module, batches: Any, parameters: Any, **rest: Any) -> Any:
            generator = rest["generator"]
            torch.rand(int(self.draws), generator=generator)
            seen.append(torch.cat([x.flatten() for x, _ in batches]))
            return Magnitude().score(model, batches, parameters, **rest)

        def __init__(self, draws: int) -> None:
            self.draws = draws

    few = tiny_run(tmp_path / "few", scorer=Spy(1))
    many = tiny_run(tmp_path / "many", scorer=Spy(100))
    assert torch.equal(*seen)
    assert few["metrics"] == many["metrics"]
