from typing import Any

import pytest
import torch
from cases import CASES, Case
from test_invariances import small_resnet

import pai

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:no fast per-sample rule"),
]
SETTINGS: list[tuple[Any, dict[str, Any]]] = [
    ("empirical_fisher", {}),
    ("mc_fisher", {"num_draws": 2}),
    ("exact_ggn", {}),
    ("hutchinson", {"num_probes": 3}),
    ("hutchinson", {"num_probes": 3, "batch_size": 1, "matrix": "gauss_newton"}),
]
every_setting = pytest.mark.parametrize(("estimator", "options"), SETTINGS)


@every_setting
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float64_results_on_a_gpu_are_those_of_the_cpu(
    accelerator: torch.device, case: Case, estimator: Any, options: dict[str, Any]
) -> None:
    model, x, y = case.problem()

    def run() -> dict[str, torch.Tensor]:
        stream = torch.Generator().manual_seed(3)
        device = next(model.parameters()).device
        return pai.curvature_diagonal(
            model, [(x.to(device), y.to(device))], estimator, generator=stream,
            parameters=pai.prunable_parameters(model, include_classifier=True), **options,
        )  # fmt: skip

    on_cpu = run()
    model.to(accelerator)
    for name, value in run().items():
        expected = on_cpu[name]
        assert (value.cpu() - expected).abs().max() <= 1e-10 * expected.abs().max()


@every_setting
def test_float32_results_on_a_gpu_are_those_of_the_cpu(
    accelerator: torch.device, estimator: Any, options: dict[str, Any]
) -> None:
    model, x, y = small_resnet()

    def run() -> dict[str, torch.Tensor]:
        device = next(model.parameters()).device
        return pai.curvature_diagonal(
            model, [(x.to(device), y.to(device))], estimator,
            generator=torch.Generator().manual_seed(3), **options,
        )  # fmt: skip

    on_cpu = run()
    model.to(accelerator)
    for name, value in run().items():
        expected = on_cpu[name]
        assert (value.cpu() - expected).abs().max() <= 1e-4 * expected.abs().max()
