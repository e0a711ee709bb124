"""Loading into targets of every kind, and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.errors import (
    BadRequest,
    KeysMismatch,
    ModscopeServerError,
    NotMaterialized,
    ShapeMismatch,
)
from modscope_server.inspection.state_dict import LoadPlan, apply_load, check_load, prepare_load
from tests.models import MLP, ZOO
from tests.server.state_dict_support import copies, load, other_values, same_states, specs_of


@pytest.mark.parametrize("name", ["lazy", "meta"])
def test_targets_without_memory_are_refused(name: str) -> None:
    model = ZOO[name].build()
    specs = [(key, "float32", (1,)) for key in model.state_dict()]
    with pytest.raises(NotMaterialized, match=name):
        check_load(model, specs, strict=False)


def test_targets_that_share_memory_with_themselves_are_refused() -> None:
    model = nn.Module()
    model.register_buffer("wide", torch.zeros(1).expand(3))
    with pytest.raises(NotMaterialized, match="share memory"):
        check_load(model, [("wide", "float32", (3,))])
    model.register_buffer("wide", torch.zeros(3).expand(1, 3))
    load(model, {"wide": torch.ones(1, 3)})
    assert model.get_buffer("wide").tolist() == [[1, 1, 1]]


def test_a_key_sent_twice_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"more than once: w1\.bias"):
        check_load(MLP(), [("w1.bias", "float32", (3,))] * 2, strict=False)


def test_a_plan_that_no_longer_holds_is_made_anew() -> None:
    model = MLP()
    state = other_values(model)
    plan = check_load(model, specs_of(state))
    model.w4 = nn.Linear(1, 1)
    before = copies(model)
    with pytest.raises(KeysMismatch, match=r"2 missing: w4\.weight, w4\.bias"):
        apply_load(model, prepare_load(model, state, True, plan), True)
    assert same_states(copies(model), before)
    assert apply_load(model, prepare_load(model, state, False, plan), False) == (["w4.weight", "w4.bias"], [])
    del model.w4
    model.w1 = nn.Linear(5, 4)
    with pytest.raises(ShapeMismatch, match=r"w1\.weight is \[4, 5\]"):
        apply_load(model, prepare_load(model, state, True, plan), True)
    del state["w2.bias"]
    model.w1 = nn.Linear(1, 3)
    with pytest.raises(KeysMismatch, match=r"w2\.bias"):
        apply_load(model, prepare_load(model, state, True, plan), True)


def test_the_optimizer_goes_on_with_what_was_loaded() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    load(model, other_values(model))
    before = copies(model)
    model(torch.ones(2, 1)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.w3.bias, before["w3.bias"])
    assert model.w1.weight.requires_grad


def test_inference_tensors_load() -> None:
    with torch.inference_mode():
        model = MLP()
    state = other_values(model)
    load(model, state)
    assert same_states(copies(model), state)


def test_a_models_own_load_state_dict_is_used() -> None:
    class Own(MLP):
        calls = 0

        def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
            self.calls += 1
            super().load_state_dict(OrderedDict(state_dict), strict, assign)

    model = Own()
    state = other_values(model)
    assert load(model, state) == ([], [])
    assert model.calls == 1
    assert same_states(copies(model), state)


def test_errors_are_ours_and_have_hints() -> None:
    model = MLP()
    for state in ({"w9": torch.ones(1)}, {"w1.weight": torch.ones(2)}, {"w1.weight": torch.ones(3, 1) * 1j}):
        with pytest.raises(ModscopeServerError) as caught:
            load(model, copies(model) | state)
        assert caught.value.hint
    assert isinstance(check_load(model, specs_of(copies(model))), LoadPlan)
