from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

import pai
from pai.models.resnet import thin_resnet
from pai.parallel import add_up, common_stream, processes, shares

SCORERS = [
    "snip", "grasp", "synflow", "random", "fts", "gts", "mts", "hts", "ntk_sap", "prospr", "px",
]  # fmt: skip


def problem() -> tuple[torch.nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = thin_resnet(num_classes=4, in_channels=1, depth=8, width=4)
    batches = [(torch.randn(n, 1, 8, 8), torch.randint(0, 4, (n,))) for n in (7, 1, 4)]
    pai.warm_up_batchnorm(model, batches[:1])
    return model, batches


def all_scores() -> dict[str, dict[str, Tensor]]:
    model, batches = problem()
    return {
        name: pai.load_scorer(name)(model, batches, generator=torch.Generator().manual_seed(5))
        for name in SCORERS
    }


def work(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count
    )
    model, batches = problem()
    mine = sum(len(targets) for _, _, targets in shares(batches))
    scores = all_scores()
    torch.manual_seed(rank)  # without a generator the processes' own states must not matter
    unseeded = pai.curvature_diagonal(model, batches, estimator="mc_fisher")
    try:
        pai.load_scorer("snip")(model, [(torch.randn(4, 1, 8, 8), batches[2][1])])
        refused = ""
    except ValueError as error:
        refused = str(error)
    torch.save(
        {"samples": mine, "scores": scores, "unseeded": unseeded, "refused": refused},
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_share_the_samples_and_get_the_scores_of_one(tmp_path: Path) -> None:
    count = 3
    spawn(work, (count, str(tmp_path)), nprocs=count)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(count)]
    assert sum(one["samples"] for one in found) == 12
    assert all(one["samples"] == 4 for one in found)
    alone = all_scores()
    for one in found:
        for scorer, scores in alone.items():
            largest = max(float(value.abs().max()) for value in scores.values())
            for name, value in scores.items():
                assert (one["scores"][scorer][name] - value).abs().max() <= 1e-6 * largest
        for name, value in found[0]["unseeded"].items():
            assert torch.equal(one["unseeded"][name], value)
        assert "batches differ between the processes" in one["refused"]


def test_a_single_process_takes_everything() -> None:
    x, y = torch.randn(3, 2), torch.arange(3)
    assert processes() == 1
    assert [(p, len(a), len(b)) for p, a, b in shares([(x, y), (x[:1], y[:1])])] == [
        (0, 3, 3), (1, 1, 1),
    ]  # fmt: skip
    assert add_up([{"a": x}], 3) == 3
    with pytest.raises(ValueError, match="batches is empty"):
        add_up([{"a": x}], 0)


def test_common_stream_follows_the_given_generator() -> None:
    def draw(seed: int) -> Tensor:
        return torch.rand(4, generator=common_stream(torch.Generator().manual_seed(seed)))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
