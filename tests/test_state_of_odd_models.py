"""Models that change themselves while they compute are left as they were, or refused by name."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pai

SCORERS = ["snip", "fd", "hts", "synflow", "grasp"]


class Table(nn.Module):
    """Fills a buffer when it is first used, as rotary embeddings do."""

    table: Tensor

    def __init__(self, *, registered: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        if registered:
            self.register_buffer("table", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, "table", None) is None:
            self.register_buffer("table", torch.arange(4, dtype=x.dtype), persistent=False)
        return self.head(torch.relu(self.first(x + self.table)))


class Overlapping(nn.Sequential):
    """Has a buffer whose elements share their memory, which cannot be written."""

    ones: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        self.register_buffer("ones", torch.ones(1).expand(5))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return super().forward(x) * self.ones[0]


class NewData(nn.Module):
    """Gives a weight new data in each forward pass, as EEGNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data = torch.renorm(self.first.weight.data, 2, 0, 0.1)
        return self.head(torch.relu(self.first(x)))


def state(model: nn.Module) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (tensor, tensor.detach().clone()) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize(
    "model",
    [Table(registered=True), Table(registered=False), Overlapping(), NewData()],
    ids=["empty buffer", "new buffer", "overlapping", "new data"],
)
def test_the_model_is_as_it_was(model: nn.Module, name: str) -> None:
    batches = [(torch.randn(6, 4), torch.arange(6) % 3)]
    before, keys = state(model), list(model.state_dict())
    pai.load_scorer(name)(model, batches)
    after = state(model)
    assert list(after) == list(before)
    assert list(model.state_dict()) == keys
    for key, (tensor, value) in before.items():
        assert after[key][0] is tensor
        assert torch.equal(after[key][1], value)
    model(batches[0][0])  # a table in float64 would not do


@pytest.mark.parametrize("name", ["snip", "fd", "hts"])
def test_embeddings_that_renormalise_themselves_are_put_back(name: str) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.first = nn.Embedding(9, 4, max_norm=0.5), nn.Linear(4, 5)
            self.head = nn.Linear(5, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.relu(self.first(self.words(tokens).mean(1))))

    model = Words()
    before = model.words.weight.detach().clone()
    pai.load_scorer(name)(model, [(torch.randint(9, (6, 3)), torch.arange(6) % 3)])
    assert torch.equal(model.words.weight, before)


def test_a_weight_that_is_changed_in_place_is_refused_by_name() -> None:
    class Decays(NewData):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.first.weight.mul_(0.9)
            return self.head(torch.relu(self.first(x)))

    model = Decays().train()
    with pytest.raises(RuntimeError, match=r"forward pass changes first.weight in place"):
        pai.load_scorer("snip")(model, [(torch.randn(6, 4), torch.arange(6) % 3)])
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_scoring_does_not_need_the_callers_gradients_but_cannot_do_without_any() -> None:
    model, batches = NewData(), [(torch.randn(6, 4), torch.arange(6) % 3)]
    expected = pai.load_scorer("fts")(model, batches)
    with torch.no_grad():
        found = pai.load_scorer("fts")(model, batches)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with torch.inference_mode(), pytest.raises(ValueError, match="outside torch"):
        pai.load_scorer("fts")(model, batches)


def test_batchnorm_without_running_statistics_is_warned_of() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 5, 2), nn.BatchNorm1d(5, track_running_stats=False), nn.Flatten(),
        nn.Linear(15, 3),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"^1: BatchNorm without running statistics"):
        pai.load_scorer("snip")(model, [(torch.randn(6, 1, 4), torch.arange(6) % 3)])


class Scaled(nn.Module):
    """Has a tensor that gathers gradients but is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(4, requires_grad=True)
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x * self.scale)))


@pytest.mark.parametrize("name", SCORERS)
def test_other_tensors_that_gather_gradients_keep_theirs(name: str) -> None:
    model, gradient = Scaled(), torch.ones(4)
    model.scale.grad = gradient
    inputs = torch.randn(6, 4, requires_grad=True)
    pai.load_scorer(name)(model, [(inputs, torch.arange(6) % 3)])
    assert model.scale.grad is gradient
    assert torch.equal(gradient, torch.ones(4))
    assert model.scale.requires_grad
    assert inputs.grad is None


@pytest.mark.parametrize("name", ["snip", "fd", "gd", "hts"])
def test_samples_that_were_computed_are_constants(name: str) -> None:
    model = Scaled()
    inputs, targets = torch.randn(6, 4), torch.arange(6) % 3
    computed = inputs * torch.ones(4, requires_grad=True)
    expected, found = (
        pai.load_scorer(name)(model, [(x, targets)], generator=torch.Generator().manual_seed(0))
        for x in (inputs, computed)
    )
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", ["snip", "grasp", "fts", "gts", "hts"])
def test_a_model_that_changes_its_inputs_is_refused(name: str) -> None:
    class Centres(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    model = Centres(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    batch = torch.randn(6, 4), torch.arange(6) % 3
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="the model changes its inputs in place"),
    ):
        warnings.simplefilter("ignore", UserWarning)  # of the layer whose rule seems not to hold
        pai.load_scorer(name)(model, [batch])


def test_a_part_compiled_by_jit_is_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        layer = torch.jit.script(nn.Linear(4, 5))
    model = nn.Sequential(layer, nn.Linear(5, 4), nn.Linear(4, 3)).train()
    with pytest.raises(ValueError, match=r"^0 is compiled by torch\.jit"):
        pai.load_scorer("snip")(model, [(torch.randn(6, 4), torch.arange(6) % 3)])
    assert model.training


class Tokens(nn.Module):
    """An image as a sequence of its pixels, which is no copy."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("name", ["snip", "grasp", "fts", "gts", "hts", "prospr"])
def test_a_batch_of_one_behind_a_norm_has_the_gradient_of_any_batch(name: str, norm: Any) -> None:
    """Torch's own gradient is wrong there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), norm(6), Tokens(), nn.LayerNorm(6), nn.Flatten(), nn.Linear(54, 3)
    ).double()
    x, y = torch.randn(4, 2, 5, 5).double(), torch.arange(4) % 3
    options: dict[str, Any] = {"batch_size": None, "matrix": "hessian"} if name == "hts" else {}
    alone, doubled = (
        pai.load_scorer(name, **options)(
            model, [(torch.cat([x[:1]] * count), torch.cat([y[:1]] * count))],
            generator=torch.Generator().manual_seed(0),
        )["0.weight"]
        for count in (1, 2)
    )  # fmt: skip
    torch.testing.assert_close(alone, doubled, rtol=1e-8, atol=1e-12)


def test_an_exported_network_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(6, 4)
    exported = torch.export.export(model, (x,)).module()
    weights = {name: p for name, p in exported.named_parameters() if p.ndim > 1}
    with pytest.raises(ValueError, match=r"^the model is exported by torch\.export"):
        pai.load_scorer("snip")(exported, [(x, torch.arange(6) % 3)], parameters=weights)


class Ragged(nn.Module):
    """Means over sequences, which may be put side by side in one nested tensor."""

    def __init__(self, *, nested: bool) -> None:
        super().__init__()
        self.first, self.head, self.nested = nn.Linear(4, 5), nn.Linear(5, 3), nested

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x.flatten(0, 1)))
        if not self.nested:
            return self.head(hidden.view(*x.shape[:2], -1).mean(1))
        ends = torch.arange(0, len(hidden) + 1, x.shape[1])
        rows = torch.nested.nested_tensor_from_jagged(hidden, ends).unbind()
        return self.head(torch.stack([row.mean(0) for row in rows]))


@pytest.mark.filterwarnings("ignore:no fast per-sample rule", "ignore:.*torch.jit")
@pytest.mark.parametrize("name", ["snip", "fts", "synflow"])
def test_nested_tensors_give_the_same_scores(name: str) -> None:
    ragged, plain = Ragged(nested=True), Ragged(nested=False)
    plain.load_state_dict(ragged.state_dict())
    batches = [(torch.randn(4, 2, 4), torch.arange(4) % 3)]
    found, expected = (pai.load_scorer(name)(model, batches) for model in (ragged, plain))
    torch.testing.assert_close(found, expected)
