"""Every model of the zoo is taken and put back bit for bit, wrapped ones and transformers included."""

from __future__ import annotations

import pytest
import torch

from tests.models import WRAPPED, ZOO
from tests.server.snapshot_support import image_of, restored, run_of, state_of

MODELS = {name: entry for name, entry in {**ZOO, **WRAPPED}.items() if name not in ("lazy", "meta")}
"""All but those that have no elements yet."""


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back(name: str) -> None:
    model = MODELS[name].build()
    run = run_of(model)
    image, then = image_of(run), state_of(run)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.itemsize > 1:
                tensor.add_(1)
    for parameter in model.parameters():
        parameter.requires_grad_(not parameter.requires_grad)
    model.train(not model.training)
    assert state_of(run) != then
    restored(image, run)
    assert state_of(run) == then
    assert not image.notes
