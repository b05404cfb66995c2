from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.errors import RunError
from pai.memory import activation_bytes, chunks, memory_budget, samples_at_once
from pai.models.resnet import thin_resnet

GIB = 2**30


class Counting(nn.Module):
    """Counts how many samples it sees at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.head(torch.tanh(self.first(x)))


def test_activation_bytes_are_those_autograd_keeps() -> None:
    model = Counting()
    x = torch.randn(1, 6)
    assert activation_bytes(model, x) == 4 * (6 + 5)  # inputs of the layers; tanh keeps the latter
    assert activation_bytes(model, torch.randn(3, 6)) == 3 * activation_bytes(model, x)


def test_pieces_fit_into_the_budget_and_cover_every_sample_once() -> None:
    model = Counting()
    data = [(torch.randn(7, 6), torch.arange(7)), (torch.randn(2, 6), torch.arange(7, 9))]
    with memory_budget(3.5 * 2 * 44 / GIB):  # three samples of 44 bytes, twice
        pieces = list(chunks(model, data, copies=2))
        assert samples_at_once(model, data[0][0], copies=200) == 1
    assert [len(y) for _, y in pieces] == [3, 3, 1, 2]
    assert torch.cat([y for _, y in pieces]).tolist() == list(range(9))
    assert [len(y) for _, y in chunks(model, data, copies=2)] == [7, 2]


@pytest.mark.parametrize("scorer", ["snip", "grasp", "fts", "gts", "mts", "hts"])
def test_scores_do_not_depend_on_the_budget(scorer: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = thin_resnet(num_classes=4, in_channels=1, depth=8, width=4).double()
        batches = [(torch.randn(12, 1, 8, 8).double(), torch.randint(0, 4, (12,)))]
    pai.warm_up_batchnorm(model, batches)
    options = {"batch_size": None, "num_probes": 2} if scorer == "hts" else {}
    score = pai.load_scorer(scorer, **options)

    def scores(gib: float) -> dict[str, Tensor]:
        with memory_budget(gib):
            return score(model, batches, generator=torch.Generator().manual_seed(1))

    whole, split = scores(4.0), scores(1e-9)
    for name, value in whole.items():
        assert (split[name] - value).abs().max() <= 1e-10 * value.abs().max()


def test_a_budget_must_be_positive() -> None:
    with pytest.raises(ValueError, match="memory_gib must be positive, got 0"), memory_budget(0):
        pass


def limited(most: int, error: Callable[[str], Exception]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the cross-entropy of a machine whose memory holds ``most`` samples."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(targets) > most:
            raise error("DefaultCPUAllocator: can't allocate memory")
        return F.cross_entropy(outputs, targets)

    return loss


@pytest.fixture
def small() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Counting().double(), [(torch.randn(12, 6).double(), torch.arange(12) % 3)]


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("scorer", ["snip", "grasp", "fts", "hts"])
def test_scoring_that_runs_out_of_memory_starts_over_in_smaller_pieces(
    scorer: str, error: type[Exception], small: tuple[nn.Module, list[tuple[Tensor, Tensor]]]
) -> None:
    model, batches = small
    options = {"batch_size": None, "num_probes": 2} if scorer == "hts" else {}
    score = pai.load_scorer(scorer, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = score(model, batches, generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="ran out of memory with"):
        found = score(
            model, batches, loss_fn=limited(3, error), generator=torch.Generator().manual_seed(1)
        )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-14)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_curvature_that_runs_out_of_memory_starts_over(
    small: tuple[nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    model, batches = small
    expected = pai.curvature_diagonal(model, batches, "empirical_fisher")
    loss = limited(5, torch.OutOfMemoryError)
    with pytest.warns(UserWarning, match="starting over with"):
        found = pai.curvature_diagonal(model, batches, "empirical_fisher", loss_fn=loss)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_it_starts_over_with_the_same_random_numbers(
    small: tuple[nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    model, batches = small
    options: Any = {"estimator": "hutchinson", "num_probes": 2}
    expected, used = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    truth = pai.curvature_diagonal(model, batches, generator=expected, **options)
    loss = limited(5, torch.OutOfMemoryError)
    with pytest.warns(UserWarning, match="starting over with"):
        found = pai.curvature_diagonal(model, batches, generator=used, loss_fn=loss, **options)
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-13)
    assert torch.equal(used.get_state(), expected.get_state())


@pytest.mark.filterwarnings("ignore:scoring ran out of memory")
def test_memory_too_small_for_one_sample_is_a_failure_and_other_errors_pass(
    small: tuple[nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    model, batches = small
    with pytest.raises(RunError, match="even with one sample at a time"):
        pai.load_scorer("snip")(model, batches, loss_fn=limited(0, RuntimeError))

    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("a fault of its own")

    with pytest.raises(RuntimeError, match="a fault of its own"):
        pai.load_scorer("snip")(model, batches, loss_fn=broken)


@pytest.mark.parametrize(
    ("scorer", "options", "advice"),
    [
        ("snip", {"train_batchnorm": True}, "scorer.train_batchnorm=false take less"),
        ("grasp", {"train_batchnorm": True}, "scorer.train_batchnorm=false take less"),
        ("prospr", {}, "scoring.batch_size.*scoring.samples_per_class.*scorer.first_order=true"),
    ],
)
def test_methods_that_never_cut_a_batch_say_what_takes_less(
    scorer: str, options: dict[str, bool], advice: str,
    small: tuple[nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:  # fmt: skip
    model, batches = small
    with pytest.raises(RunError, match=f"ran out of memory:.*never cut.*{advice}") as caught:
        pai.load_scorer(scorer, **options)(model, batches, loss_fn=limited(11, RuntimeError))
    assert "one sample" not in str(caught.value)
    assert "memory_gib" not in str(caught.value)
    pai.load_scorer(scorer, **options)(model, batches, loss_fn=limited(12, RuntimeError))


@pytest.mark.parametrize("gib", [1e9, 1e300, float("inf")])
def test_a_budget_without_end_takes_everything_at_once(gib: float) -> None:
    model, data = Counting(), [(torch.randn(7, 6), torch.arange(7) % 3)]
    with memory_budget(gib):
        assert [len(x) for x, _ in chunks(model, data, copies=2)] == [7]
        scores = pai.load_scorer("gts")(model, data)
    assert all(bool(value.isfinite().all()) for value in scores.values())
