"""Text and graphs through the whole pipeline: every scorer, every schedule, metrics, resuming."""

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_config_folder import PROMISED
from tiny import LABELS, config, untimed
from torch import Tensor, nn

import pai
import pai.training.loop
from pai.data.karate import KarateClub
from pai.errors import ConfigError
from pai.models.gnn import gat, gcn
from pai.models.gpt import gpt
from pai.plan import prepare
from pai.runner import run

SMALL = ("scoring.samples_per_class=3", "logger=none", "device=cpu", "scoring.cache_dir=null")
WORDS = "the cat sat on the mat and the dog lay on the log while the rain fell on the plain\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return overrides for a tiny run on a tiny text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{number} {WORDS}" for number in range(60)))
    return [
        "dataset=text", f"dataset.path={path}", "dataset.context_length=12", "model.embed_dim=8",
        "model.depth=1", "training.batch_size=16", "model.dropout=0.1", *SMALL,
    ]  # fmt: skip


def started(run_dir: Path, *overrides: str) -> dict[str, Any]:
    return run(prepare(config(*overrides)), run_dir, LABELS)


def problem(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    stream = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "gpt":
            model: nn.Module = gpt(
                vocab_size=9, context_length=6, embed_dim=8, depth=1, num_heads=2
            )
            tokens = torch.randint(0, 9, (4, 7), generator=stream)
            return model, [(tokens[:3, :-1], tokens[:3, 1:]), (tokens[3:, :-1], tokens[3:, 1:])]
        data = KarateClub().load()
        build: Any = {"gcn": gcn, "gat": gat}[name]
        model = build(
            num_classes=2, node_features=data.graph.features, edge_index=data.graph.edge_index,
            width=4,
        )  # fmt: skip
        return model, list(data.scoring_batches(2, 3, seed=0))


@pytest.mark.parametrize("scorer", pai.available_scorers())
@pytest.mark.parametrize("name", ["gpt", "gcn", "gat"])
def test_every_scorer_works_on_every_task(name: str, scorer: str) -> None:
    model, batches = problem(name)
    if not type(pai.load_scorer(scorer)).takes_whole_numbers:
        with pytest.raises(ConfigError, match="whole numbers"):
            pai.load_scorer(scorer)(model, batches)
        return
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no fast per-sample rule for layers.0.linear.weight")
        scores = pai.load_scorer(scorer)(model, batches, generator=torch.Generator().manual_seed(0))
    parameters = pai.prunable_parameters(model)
    assert {n: s.shape for n, s in scores.items()} == {n: p.shape for n, p in parameters.items()}
    for score in scores.values():
        assert bool(score.isfinite().all())
        assert bool(score.any())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert math.isclose(
        sum(int(keep.sum()) for keep in pai.select(scores, sparsity=0.9).values()),
        0.1 * sum(p.numel() for p in parameters.values()), abs_tol=0.51,
    )  # fmt: skip


def test_language_has_all_metrics_and_the_lowest_loss_selects(
    text: list[str], tmp_path: Path
) -> None:
    record = started(tmp_path, *text, "scorer=snip", "training.epochs=3")
    metrics, history = record["metrics"], record["history"]
    for part in ("test", "val", "best_val", "best_val_test"):
        assert metrics[f"{part}_perplexity"] == pytest.approx(math.exp(metrics[f"{part}_loss"]))
        assert 0 <= metrics[f"{part}_accuracy"] <= 1
    losses = [row["val_loss"] for row in history]
    assert metrics["best_val_epoch"] == 1 + losses.index(min(losses))
    assert metrics["best_val_loss"] == min(losses)
    assert losses[-1] < losses[0]
    assert history[0]["train_tokens_per_s"] > 0
    data = record["data"]
    assert data["scoring"] == 3
    assert sum(data["tokens"].values()) == len("".join(f"{n} {WORDS}" for n in range(60)))
    assert data["vocabulary"]["characters"][0] == "\n"
    mask = record["mask"]
    assert mask["sparsity"] <= mask["effective_sparsity"] < 1
    assert record["warmup"]["batchnorm_layers"] == 0
    assert 0 < record["cost"]["forward_flops_masked"] < record["cost"]["forward_flops_dense"]
    weights, mask = (load_file(tmp_path / f"{name}.safetensors") for name in ("model", "mask"))
    assert torch.equal(weights["head.weight"], weights["tokens.weight"])
    assert all(not bool(weights[name][~keep].any()) for name, keep in mask.items())


def test_a_broken_text_run_ends_as_the_undisturbed_one(
    text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*text, "scorer=random", "training.epochs=3"]
    whole = started(tmp_path / "whole", *arguments)
    real = pai.training.loop._train_epoch
    epochs = []

    def breaking(*given: Any) -> Any:
        done = real(*given)
        epochs.append(given[-1])
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(pai.training.loop, "_train_epoch", breaking)
    with pytest.raises(KeyboardInterrupt):
        started(tmp_path / "broken", *arguments)
    again = started(tmp_path / "broken", *arguments)
    assert epochs == [0, 1, 1, 2]
    assert again["metrics"] == whole["metrics"]
    assert untimed(again["history"]) == untimed(whole["history"])
    for name in ("model.safetensors", "mask.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("schedule", PROMISED["schedule"].split())
@pytest.mark.parametrize("task", ["text", "gcn", "gat"])
def test_every_schedule_works_on_every_task(
    task: str, schedule: str, text: list[str], tmp_path: Path
) -> None:
    chosen = text if task == "text" else ["dataset=karate", f"model={task}", *SMALL]
    rounds = [] if schedule == "oneshot" else ["schedule.rounds=3"]
    record = started(
        tmp_path, *chosen, "scorer=snip", f"schedule={schedule}", *rounds, "training.epochs=0"
    )
    assert record["status"] == "completed"
    assert record["mask"]["sparsity"] == pytest.approx(0.9, abs=0.01)


def test_a_graph_is_learnt_and_its_data_is_not_saved(tmp_path: Path) -> None:
    record = started(
        tmp_path, "dataset=karate", *SMALL, "scorer=snip", "sparsity=0.5", "training.epochs=60",
        "training.optimizer.lr=0.05",
    )  # fmt: skip
    assert record["metrics"]["test_accuracy"] >= 0.75  # chance is 0.5
    assert record["data"]["graph"]["edges"] == 78
    assert record["history"][0]["train_nodes_per_s"] > 0
    assert "test_perplexity" not in record["metrics"]
    weights = load_file(tmp_path / "model.safetensors")
    assert set(weights) == {
        f"layers.{k}.{name}" for k in (0, 1) for name in ("linear.weight", "bias")
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset=text", "model=resnet20"], r"thin_resnet has no parameter vocab_size.*model=gpt"),
        (["dataset=karate", "model=gpt"], r"gpt has no parameter num_classes.*model=gcn"),
        (["model=gcn"], r"gcn has no parameter in_channels.*for images"),
        (["dataset=text", "training.mixup_alpha=0.2"], r"training\.mixup_alpha: .*set it to 0"),
        (["dataset=text", "scorer=gts"], r"scorer: exact_ggn .* position.* x 64; mc_fisher"),
        (["dataset=karate", "scoring.samples_per_class=11"], "10 training nodes"),
        (["dataset=text", "scoring.samples_per_class=1000000"], "no classes.*sequences"),
        (["dataset=text", "dataset.crop_padding=2"], "crop_padding"),
    ],
)
def test_what_does_not_fit_is_a_config_error(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        prepare(config("scorer=snip", *overrides))


def test_exact_curvature_of_text_can_be_insisted_on(text: list[str], tmp_path: Path) -> None:
    record = started(
        tmp_path, *text, "scorer=gp", "scorer.max_classes=1000", "training.epochs=0",
        "scoring.samples_per_class=1",
    )  # fmt: skip
    assert record["scoring"]["is_hessian_diagonal"] is False


class Unfed(nn.Module):
    """Whole numbers that reach no embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.to(self.head.weight.dtype)))


def test_synflow_on_tokens_is_the_flow_of_one_hot_inputs_of_ones() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.Flatten(), nn.Linear(6, 2))
    weights = (model.get_parameter(f"{k}.weight").detach().double().abs() for k in (0, 1, 3))
    first, second, last = weights
    scores = pai.load_scorer("synflow")(model, [(torch.zeros(1, 2, dtype=torch.int64), None)])
    into = first.sum(0)
    after = last.sum(0).view(2, 3).sum(0)
    torch.testing.assert_close(scores["1.weight"], second * after[:, None] * into)
    with pytest.raises(ValueError, match=r"no nn\.Embedding"):
        pai.load_scorer("synflow")(Unfed(), [(torch.zeros(1, 2, dtype=torch.int64), None)])


def test_synflow_is_conserved_on_a_graph() -> None:
    model, batches = problem("gcn")
    parameters = pai.prunable_parameters(model, include_classifier=True)
    scores = pai.load_scorer("synflow")(model, batches, parameters=parameters)
    into, out_of = scores["layers.0.linear.weight"].sum(1), scores["layers.1.linear.weight"].sum(0)
    torch.testing.assert_close(into, out_of)


def test_positions_cannot_be_ignored_while_scoring() -> None:
    model, [(x, y), _] = problem("gpt")
    y = y.clone()
    y[0, 0] = -100
    for name in ("snip", "fd", "hts", "grasp"):
        with pytest.raises(ValueError, match="targets are negative"):
            pai.load_scorer(name)(model, [(x, y)])
