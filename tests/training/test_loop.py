import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import untimed
from torch import Tensor, nn
from training_cases import (
    ADAMW,
    CONSTANT,
    NESTEROV,
    convnet,
    digits,
    exact_evaluation,
    plain_net,
    pruned_weights,
    random_mask,
    run,
    settings,
)

from pai.data.bundle import DataBundle, Split
from pai.errors import RunError
from pai.training import loop
from pai.training.evaluate import Evaluation, evaluate
from pai.training.lr_schedules import LRSchedule, Steps
from pai.training.mixup import Mixture, draw_mixture
from pai.training.optimizers import OptimizerBuilder, Sgd


class Spied:
    """Builds another builder's optimizer; notes what each step did, before the loop goes on."""

    def __init__(
        self, builder: OptimizerBuilder, model: nn.Module, mask: dict[str, Tensor]
    ) -> None:
        self.builder, self.model, self.mask = builder, model, mask
        self.rates: list[float] = []
        self.steps_that_moved_a_pruned_weight = 0

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = self.builder(parameters)
        optimizer.register_step_post_hook(self.note)
        return optimizer

    def note(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        moved = any(bool(weights.any()) for weights in pruned_weights(self.model, self.mask))
        self.steps_that_moved_a_pruned_weight += moved


@pytest.mark.parametrize("optimizer", [NESTEROV, ADAMW])
def test_pruned_weights_are_exactly_zero_at_every_forward_pass_and_at_the_end(
    optimizer: OptimizerBuilder, tmp_path: Path
) -> None:
    model = convnet()
    mask = random_mask(model)
    passes = {True: 0, False: 0}

    def check(module: nn.Module, _: Any) -> None:
        passes[module.training] += 1
        assert not any(bool(weights.any()) for weights in pruned_weights(module, mask))

    model.register_forward_pre_hook(check)
    spied = Spied(optimizer, model, mask)
    run(model, tmp_path, settings(optimizer=spied, lr_schedule=CONSTANT), mask=mask)
    assert spied.steps_that_moved_a_pruned_weight == 15  # the zeros are the loop's own doing
    assert passes == {True: 15, False: 3 + 3}
    assert all(torch.equal(w, torch.zeros_like(w)) for w in pruned_weights(model, mask))


@pytest.mark.parametrize("optimizer", [NESTEROV, ADAMW])
def test_every_kept_weight_and_every_other_parameter_trains(
    optimizer: OptimizerBuilder, tmp_path: Path
) -> None:
    model = convnet()
    mask = random_mask(model)
    before = copy.deepcopy(model.state_dict())
    run(model, tmp_path, settings(optimizer=optimizer), mask=mask)
    for name, parameter in model.named_parameters():
        moved = parameter.detach() != before[name]
        assert bool(moved[mask[name]].all() if name in mask else moved.any())


def test_training_learns_real_digits(tmp_path: Path) -> None:
    data = digits(augmented=False, train_images=1000)
    result, _ = run(plain_net(), tmp_path, settings(epochs=6, optimizer=Sgd(lr=0.1)), data=data)
    losses = [row["train_loss"] for row in result["history"]]
    assert losses == sorted(losses, reverse=True)
    assert result["metrics"]["test_accuracy"] > 0.7  # chance is 0.1


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_epoch_of_one_batch_is_one_gradient_step_at_the_masked_point(
    smoothing: float, tmp_path: Path
) -> None:
    data, model = digits(augmented=False), plain_net()
    mask = random_mask(model)
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, keep in mask.items():
            twin.get_parameter(name).mul_(keep)
    images = (data.train.images.double() / 255 - data.mean.double()) / data.std.double()
    logits: Tensor = twin(images)
    log_probability = logits - logits.exp().sum(1, keepdim=True).log()
    nll = -log_probability[torch.arange(len(images)), data.train.labels]
    loss = ((1 - smoothing) * nll - smoothing * log_probability.mean(1)).mean()
    loss.backward()
    options = settings(
        1, Sgd(lr=0.3, momentum=0.0, weight_decay=0.2), len(images), CONSTANT, smoothing
    )
    result, _ = run(model, tmp_path, options, mask=mask, data=data)
    (row,) = result["history"]
    assert row["train_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    hits = logits.argmax(1) == data.train.labels
    assert row["train_accuracy"] == pytest.approx(float(hits.double().mean()), abs=1e-12)
    for name, parameter in model.named_parameters():
        exact = twin.get_parameter(name)
        assert exact.grad is not None
        expected = (exact - 0.3 * (exact.grad + 0.2 * exact)).detach()
        if name in mask:
            expected = expected * mask[name]
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-4, atol=1e-6)


def test_the_training_loss_weighs_a_short_last_batch_by_its_samples(tmp_path: Path) -> None:
    data, model = digits(augmented=False, train_images=35), plain_net()
    mask = random_mask(model, density=2)
    expected, accuracy = exact_evaluation(model, data, data.train)
    still = settings(1, Sgd(lr=1e-12, momentum=0.0), batch_size=32, lr_schedule=CONSTANT)
    result, _ = run(model, tmp_path, still, mask=mask, data=data)
    assert result["history"][0]["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert result["history"][0]["train_accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_metrics_are_those_of_the_final_weights(tmp_path: Path) -> None:
    data, model = digits(), convnet()
    result, rows = run(model, tmp_path)
    metrics = result["metrics"]
    for part, name in ((data.val, "val"), (data.test, "test")):
        loss, accuracy = exact_evaluation(model, data, part)
        assert metrics[f"{name}_loss"] == pytest.approx(loss, rel=1e-4)
        assert metrics[f"{name}_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert rows == result["history"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["val_accuracy"] == metrics["val_accuracy"]
    assert metrics["best_val_accuracy"] == max(row["val_accuracy"] for row in rows)


def scripted_validation(
    data: DataBundle, accuracies: list[float], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Replace the validation results by a script; return the parts as they get evaluated."""
    script, parts = iter(accuracies), []

    def scripted(model: nn.Module, batches: Any, *rest: Any) -> Evaluation:
        if batches.split is data.val:
            parts.append("val")
            return Evaluation(1.0, next(script, accuracies[-1]))
        assert batches.split is data.test
        assert batches.augment is None
        parts.append("test")
        return evaluate(model, batches, *rest)

    monkeypatch.setattr(loop, "evaluate", scripted)
    return parts


@pytest.mark.parametrize(
    ("accuracies", "best"), [([0.2, 0.9, 0.9, 0.5], 2), ([0.5, 0.4, 0.3], 1), ([0.1, 0.2], 2)]
)
def test_validation_selects_the_best_epoch_and_test_is_only_used_at_the_end(
    accuracies: list[float], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model = digits(), convnet()
    parts = scripted_validation(data, accuracies, monkeypatch)
    weights = []
    result = loop.train(
        model, random_mask(model), data, settings(len(accuracies)), seed=0,
        checkpoint=tmp_path / "checkpoint.pt",
        on_epoch=lambda row: weights.append(copy.deepcopy(model.state_dict())),
    )  # fmt: skip
    metrics, chosen = result["metrics"], convnet()
    assert "test" not in parts[: len(accuracies)]
    assert parts.count("test") == 2
    assert metrics["best_val_epoch"] == best
    assert metrics["best_val_accuracy"] == accuracies[best - 1]
    chosen.load_state_dict(weights[best - 1])
    loss, accuracy = exact_evaluation(chosen, data, data.test)
    assert metrics["best_val_test_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert metrics["best_val_test_loss"] == pytest.approx(loss, rel=1e-4)
    loss, accuracy = exact_evaluation(model, data, data.test)
    assert metrics["test_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[-1][name])  # the last epoch's weights stay


def test_the_test_part_influences_nothing_but_its_own_metrics(tmp_path: Path) -> None:
    data, model, other_model = digits(), convnet(), convnet()
    inverted = Split(255 - data.test.images, (data.test.labels + 1) % 10)
    (tmp_path / "other").mkdir()
    result, _ = run(model, tmp_path)
    other, _ = run(other_model, tmp_path / "other", data=replace(data, test=inverted))
    assert untimed(result["history"]) == untimed(other["history"])
    assert result["metrics"]["test_loss"] != other["metrics"]["test_loss"]
    for key in ("val_loss", "val_accuracy", "best_val_accuracy", "best_val_epoch"):
        assert result["metrics"][key] == other["metrics"][key]
    for name, value in model.state_dict().items():
        assert torch.equal(value, other_model.state_dict()[name])


def test_evaluation_does_not_depend_on_its_batch_size(tmp_path: Path) -> None:
    results = []
    for size in (512, 7):
        (tmp_path / str(size)).mkdir()
        options = settings(epochs=1, evaluation_batch_size=size)
        results.append(run(convnet(), tmp_path / str(size), options)[0]["metrics"])
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def test_mixup_draws_from_a_stream_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []

    def noting_draw(*arguments: Any) -> Mixture:
        mixture = draw_mixture(*arguments)
        shares.append(mixture.lam)
        return mixture

    monkeypatch.setattr(loop, "draw_mixture", noting_draw)
    dropped: list[list[float]] = []
    histories = []

    class Noting(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                dropped[-1].append(float(torch.rand(())))
            return x

    for alpha in (0.0, 0.4):
        dropped.append([])
        (tmp_path / str(alpha)).mkdir()
        model = nn.Sequential(*plain_net(), Noting())
        options = settings(epochs=2, mixup_alpha=alpha)
        histories.append(run(model, tmp_path / str(alpha), options, mask={})[0]["history"])
    assert dropped[0] == dropped[1]
    assert len(shares) == len(set(shares)) == 10  # a new draw for each batch of each epoch
    assert histories[1][0]["train_loss"] != histories[0][0]["train_loss"]
    assert all(0 < row["train_accuracy"] < 1 for row in histories[1])


def test_the_history_says_how_fast_the_training_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("pai.training.loop.time.perf_counter", lambda: next(clock))
    result, _ = run(plain_net(), tmp_path, settings(epochs=2))
    assert [row["train_images_per_s"] for row in result["history"]] == [15.0, 15.0]


def test_no_epochs_means_masking_and_evaluation_only(tmp_path: Path) -> None:
    data, model = digits(), convnet()
    mask = random_mask(model)
    expected = copy.deepcopy(model.state_dict())
    for name, keep in mask.items():
        expected[name] = torch.where(keep, expected[name], torch.zeros(()))
    result, rows = run(model, tmp_path, settings(epochs=0), mask=mask)
    assert rows == result["history"] == []
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    loss, accuracy = exact_evaluation(model, data, data.test)
    metrics = result["metrics"]
    assert metrics["test_accuracy"] == metrics["best_val_test_accuracy"] == pytest.approx(accuracy)
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["best_val_epoch"] == 0


def test_a_loss_that_is_not_finite_fails_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Diverging:
        def factor(self, epoch: float, epochs: int) -> float:
            return 1e30 if epoch > 1 else 1.0

    options = settings(3, Sgd(lr=0.05), lr_schedule=Diverging())
    with pytest.raises(RunError, match=r"training loss became (nan|inf) in epoch 2.*optimizer\.lr"):
        run(convnet(), tmp_path, options)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 1
    assert all(bool(value.isfinite().all()) for value in state["model"].values())


def test_a_pruned_weight_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    model = plain_net()
    mask = random_mask(model)
    position = tuple(torch.nonzero(~mask["1.weight"])[0].tolist())

    def overflow(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[position] = float("inf")
        return gradient

    model.get_parameter("1.weight").register_hook(overflow)
    with pytest.raises(RunError, match=r"nan in epoch 1, step 2: 1 of 4 .*, '1.weight';"):
        run(model, tmp_path, settings(2, Sgd(lr=0.05)), mask=mask)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("milestones", [[1], [1, 2], [3]])
def test_the_learning_rate_drops_when_a_milestone_epoch_begins(
    milestones: list[int], tmp_path: Path
) -> None:
    model = plain_net()
    mask = random_mask(model)
    spied = Spied(Sgd(lr=0.5), model, mask)
    schedule: LRSchedule = Steps(milestones, 0.1)
    run(model, tmp_path, settings(4, spied, batch_size=50, lr_schedule=schedule), mask=mask)
    epochs = [[0.5 * 0.1 ** sum(epoch >= m for m in milestones)] * 3 for epoch in range(4)]
    assert spied.rates == pytest.approx([rate for epoch in epochs for rate in epoch])


def test_the_seed_decides_order_augmentation_and_dropout(tmp_path: Path) -> None:
    histories = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        (tmp_path / str(number)).mkdir()
        histories.append(run(convnet(), tmp_path / str(number), seed=seed)[0]["history"])
    assert untimed(histories[0]) == untimed(histories[1])
    assert histories[0][0]["train_loss"] != histories[2][0]["train_loss"]


def test_each_epoch_sees_every_image_in_an_order_of_its_own(tmp_path: Path) -> None:
    model, seen = plain_net(), []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module.training:
            seen.extend(args[0].flatten(1).tolist())

    model.register_forward_pre_hook(note)
    run(model, tmp_path, settings(epochs=2), data=digits(augmented=False))
    first, second = seen[:150], seen[150:]
    assert first != second and sorted(first) == sorted(second)


def test_dropout_is_drawn_anew_in_each_epoch(tmp_path: Path) -> None:
    draws: list[float] = []

    class Noting(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                draws.append(float(torch.rand(())))
            return x

    run(nn.Sequential(*plain_net(), Noting()), tmp_path, settings(epochs=2), mask={})
    assert len(draws) == len(set(draws)) == 10


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    run(convnet(), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
