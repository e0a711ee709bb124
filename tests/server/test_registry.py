"""Which optimizers are ours is told by the parameters that they hold, whenever they take them."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from modscope_server.errors import UnknownModel
from modscope_server.runtime.registry import Registry


def test_an_optimizer_is_ours_from_when_it_takes_a_parameter() -> None:
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    registry = Registry({"model": model})
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    assert not registry.holds(optimizer)
    assert not registry.holds(optimizer)
    optimizer.add_param_group({"params": [model.weight]})
    assert registry.holds(optimizer)
    assert registry.optimizers() == [optimizer]
    assert registry.ours == {id(optimizer)}


def test_given_ones_come_first_and_stay() -> None:
    model = nn.Linear(2, 1)
    given, found = (torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters())
    registry = Registry({"model": model}, [given])
    assert registry.holds(given)
    assert registry.holds(found)
    assert registry.optimizers() == [given, found]


def test_one_that_is_gone_is_forgotten() -> None:
    model = nn.Linear(2, 1)
    registry = Registry({"model": model})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert registry.holds(optimizer)
    del optimizer
    gc.collect()
    assert registry.ours == set()
    assert registry.optimizers() == []


def test_the_only_model_needs_no_name() -> None:
    model = nn.Linear(2, 1)
    assert Registry({"model": model}).get().root is model
    with pytest.raises(UnknownModel, match="name one"):
        Registry({"a": model, "b": model}).get()
