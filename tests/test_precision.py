"""While scoring, float32 numbers are multiplied as chosen, whatever torch is set to before."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import command, record_in, tiny_run
from torch import Tensor, nn

import pai
from pai.curvature import recording
from pai.precision import Precision, chosen_precision, rounding
from pai.scorers.memo import remembering

BACKENDS: Any = torch.backends
ON_GPU = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn)
ON_CPU = (BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul)
BATCHES = [(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3)]


def settings() -> list[Any]:
    return [place.fp32_precision for place in (*ON_GPU, *ON_CPU)]


def older_settings() -> list[Any]:
    """Return what torch's older functions tell; they raise where the newer ones contradict."""
    return [
        torch.get_float32_matmul_precision(),
        BACKENDS.cuda.matmul.allow_tf32,
        BACKENDS.cudnn.allow_tf32,
    ]


@pytest.fixture
def restored() -> Iterator[None]:
    before = settings()
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for place, value in zip((*ON_GPU, *ON_CPU), before, strict=True):
        place.fp32_precision = value


class Spy(nn.Module):
    """A network that notes torch's settings when it is used."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3)
            )
        self.seen: set[tuple[Any, ...]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((*settings(), *older_settings()))
        out: Tensor = self.layers(x)
        return out


def cudnn(allow: bool) -> None:
    BACKENDS.cudnn.allow_tf32 = allow


def cublas(allow: bool) -> None:
    BACKENDS.cuda.matmul.allow_tf32 = allow


STATES: dict[str, Callable[[], object]] = {
    "as torch starts": lambda: None,
    "highest": functools.partial(torch.set_float32_matmul_precision, "highest"),
    "high": functools.partial(torch.set_float32_matmul_precision, "high"),
    "medium": functools.partial(torch.set_float32_matmul_precision, "medium"),
    "cudnn off": functools.partial(cudnn, False),
    "cublas on": functools.partial(cublas, True),
}
FULL = (*["ieee"] * 5, "highest", False, False)
TF32 = (*["tf32"] * 3, *["ieee"] * 2, "high", True, True)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("precision", "expected"), [("float32", FULL), ("tf32", TF32)])
def test_scores_are_computed_as_chosen_and_torch_is_left_as_it_was(
    state: str, precision: Precision, expected: tuple[Any, ...]
) -> None:
    STATES[state]()
    before = settings(), older_settings()
    model = Spy()
    with pai.scoring_precision(precision):
        pai.warm_up_batchnorm(model, BATCHES)
        assert model.seen == {expected}
        pai.load_scorer("snip")(model, BATCHES)
        pai.load_scorer("gts")(model, BATCHES)
        pai.curvature_diagonal(model, BATCHES, "hutchinson", matrix="gauss_newton")
    assert model.seen == {expected}
    assert (settings(), older_settings()) == before


@pytest.mark.usefixtures("restored")
def test_full_float32_is_the_default_and_survives_an_error() -> None:
    torch.set_float32_matmul_precision("medium")
    before = settings(), older_settings()
    model = Spy()
    with pytest.raises(IndexError):
        pai.load_scorer("snip")(model, [(BATCHES[0][0], torch.full((6,), 7))])
    assert model.seen == {FULL}
    assert (settings(), older_settings()) == before
    assert chosen_precision() == "float32"


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", ["snip", "grasp", "gts", "hts"])
def test_a_cpu_that_may_multiply_in_bfloat16_gives_the_same_scores(name: str) -> None:
    """Networks large enough that torch would take its short formats."""
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.Linear(256, 9)
        )
    batches = [(torch.randn(64, 256, generator=generator), torch.arange(64) % 9)]

    def scores() -> dict[str, Tensor]:
        stream = torch.Generator().manual_seed(3)
        return pai.load_scorer(name)(model, batches, generator=stream)

    torch.set_float32_matmul_precision("highest")
    expected = scores()
    torch.set_float32_matmul_precision("medium")
    for key, value in scores().items():
        assert torch.equal(value, expected[key])


def test_rules_may_differ_from_autograd_by_as_much_as_products_are_rounded() -> None:
    assert rounding(torch.float32) == torch.finfo(torch.float32).eps
    with pai.scoring_precision("tf32"):
        assert rounding(torch.float32) == 2**-10
        assert rounding(torch.float64) == torch.finfo(torch.float64).eps


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="precision must be float32 or tf32, got 'bf16'"),
        pai.scoring_precision("bf16"),  # type: ignore[arg-type]
    ):
        pass
    done = command("scoring.precision=bf16", cwd=tmp_path)
    assert done.returncode == 2
    assert "scoring.precision" in done.stderr
    assert "'float32' or 'tf32'" in done.stderr


def test_a_run_scores_as_configured_and_trains_as_torch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Any]] = []
    forward = nn.Linear.forward

    def spy(layer: nn.Linear, x: Tensor) -> Tensor:
        seen.append(("train" if layer.training else "eval", BACKENDS.cudnn.conv.fp32_precision))
        return forward(layer, x)

    monkeypatch.setattr(nn.Linear, "forward", spy)
    outside = BACKENDS.cudnn.conv.fp32_precision
    assert outside == "tf32"
    tiny_run(tmp_path / "float32", "scorer=snip")
    assert ("eval", "ieee") in seen
    assert ("train", "ieee") not in seen
    assert ("train", "tf32") in seen
    seen.clear()
    tiny_run(tmp_path / "tf32", "scorer=snip", "scoring.precision=tf32")
    assert ("eval", "tf32") in seen
    assert record_in(tmp_path / "tf32")["config"]["scoring"]["precision"] == "tf32"


def test_cached_scores_are_of_one_precision(tmp_path: Path) -> None:
    hits = []
    for precision in ("float32", "tf32", "float32"):
        model = Spy()
        with (
            pai.scoring_precision(precision),
            remembering(tmp_path, model, BATCHES, None, {}) as memo,
        ):
            pai.load_scorer("snip")(model, BATCHES)
        assert memo is not None
        hits += [entry["hit"] for entry in memo.entries]
    assert hits == [False, False, True]


@pytest.mark.parametrize(("chosen", "expected"), [("float32", "ieee"), ("tf32", "tf32")])
def test_the_kernel_for_gpus_multiplies_as_chosen(
    chosen: Precision, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(recording, "available", lambda device: True)
    monkeypatch.setattr(recording, "supports", lambda a, u: True)
    monkeypatch.setattr(
        recording, "fused_square_sum",
        lambda a, u, squares, gradients, precision: asked.append(precision),
    )  # fmt: skip
    with pai.scoring_precision(chosen), pytest.warns(UserWarning, match="no fast per-sample rule"):
        pai.curvature_diagonal(Spy(), BATCHES, "empirical_fisher")
    assert set(asked) == {expected}
