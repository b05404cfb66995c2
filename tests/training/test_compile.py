import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from training_cases import convnet, digits, pruned_weights, random_mask, run, settings


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_training_is_the_same_training_of_the_same_model(tmp_path: Path) -> None:
    results = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        folder.mkdir()
        model = convnet()
        model[5] = nn.Identity()  # compiled dropout draws other numbers
        mask, options = random_mask(model), settings(epochs=2, compile=compiled)
        data = digits(train_images=64)
        result, _ = run(model, folder, options, mask=mask, data=data)
        assert not any(bool(weights.any()) for weights in pruned_weights(model, mask))
        results.append((result, model.state_dict()))
    (eager, expected), (compiled_result, weights) = results
    assert list(weights) == list(expected)
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(compiled_result["history"], eager["history"], strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
    state = torch.load(tmp_path / "True" / "checkpoint.pt", weights_only=True)
    convnet().load_state_dict(state["model"])
