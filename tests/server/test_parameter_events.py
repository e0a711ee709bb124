"""Parameters and gradients are told as optimizers have used and left them, as PyTorch itself says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from tests.server.boundary_support import BOTH, Used, following, tensors
from tests.server.capture_support import drained, hook_tables


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def loss_of(model: nn.Module) -> torch.Tensor:
    loss: torch.Tensor = model(torch.randn(8, 4)).square().mean()
    return loss


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        lambda params: torch.optim.AdamW(params, lr=0.1, foreach=True),
        lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    ],
    ids=["sgd", "foreach", "fused"],
)
def test_they_are_what_the_optimizer_has_used_and_made(
    make: Callable[[Any], Optimizer], set_to_none: bool
) -> None:
    model = net()
    optimizer = make(model.parameters())
    used = Used(model, optimizer)
    with following(model, optimizer) as loop:
        watch = loop.watch(kinds=BOTH, payload="tensor")
        numbers = loop.watch(kinds=BOTH)
        for used.step in range(1, 4):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss_of(model).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        used.equals(drained(watch))
        assert len(used.seen) == 3 * 2 * 4
        for event in drained(numbers):
            (value,) = event.values
            seen = used.seen[event.step, event.hook, event.path].double()
            assert (value.shape, value.dtype, value.tensor) == (tuple(seen.shape), "float32", None)
            assert value.stats is not None
            assert value.stats.mean == pytest.approx(seen.mean().item(), rel=1e-6, abs=1e-9)
            assert value.stats.norm == pytest.approx(seen.norm().item(), rel=1e-6)


def test_names_types_and_time_are_those_of_the_parameter_and_its_module() -> None:
    model = nn.DataParallel(nn.Sequential(nn.Linear(2, 2, bias=False)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with following(model, optimizer) as loop:
        watch = loop.watch(glob="0", kinds=BOTH, payload="none")
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        gradient, parameter = drained(watch)
    assert (gradient.hook, parameter.hook) == BOTH[::-1]
    for event in (gradient, parameter):
        assert (event.model, event.path, event.raw_path) == ("model", "0.weight", "module.0.weight")
        assert (event.type, event.step, event.call, event.recompute) == ("Linear", 1, 0, False)
        (value,) = event.values
        assert (value.shape, value.dtype, value.stats, value.tensor) == ((2, 2), "float32", None, None)
    assert gradient.time <= parameter.time


def test_a_gradient_that_was_gathered_over_batches_is_told_once_and_whole() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    used = Used(model, optimizer)
    with following(model, optimizer) as loop:
        watch = loop.watch(kinds=BOTH, payload="tensor")
        for used.step in range(1, 3):
            for _ in range(3):
                loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
        used.equals(drained(watch))
        assert len(used.seen) == 2 * 2 * 4


def test_a_mark_after_the_optimizer_tells_nothing_twice() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    used = Used(model, optimizer)
    with following(model) as loop:
        watch = loop.watch(kinds=BOTH, payload="tensor")
        for used.step in range(1, 4):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
            loop.step()
        used.equals(drained(watch))


def test_an_update_through_data_is_no_stale_statistic() -> None:
    model = nn.Linear(2, 1, bias=False)

    class ByData(Optimizer):
        def __init__(self) -> None:
            super().__init__(model.parameters(), {})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            model.weight.data.fill_(model.weight.data.amax().item() + 1)

    with torch.no_grad():
        model.weight.fill_(0)
    optimizer = ByData()
    with following(model, optimizer) as loop:
        watch = loop.watch(kinds=("parameter",))
        for _ in range(3):
            model(torch.ones(1, 2))
            optimizer.step()
        assert [event.values[0].stats.mean for event in drained(watch)] == [1, 2, 3]  # type: ignore[union-attr]


def test_a_closure_that_is_called_several_times_is_one_iteration() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    used = Used(model, optimizer)
    batch = torch.randn(8, 4)
    calls = 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss: torch.Tensor = model(batch).square().mean()
        loss.backward()
        return loss

    with following(model, optimizer) as loop:
        watch = loop.watch(kinds=BOTH, payload="tensor")
        for used.step in range(1, 3):
            optimizer.step(closure)
        used.equals(drained(watch))
    assert calls > 2


def test_a_tied_tensor_is_told_once_under_its_first_path_among_those_that_were_chosen() -> None:
    embed, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    head.weight = embed.weight
    model = nn.ModuleDict({"embed": embed, "head": head})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with following(model, optimizer) as loop:
        both = loop.watch(kinds=BOTH, payload="tensor")
        one = loop.watch(glob="head", kinds=BOTH, payload="tensor")
        head(embed(torch.tensor([1]))).sum().backward()
        assert head.weight.grad is not None
        gradient = head.weight.grad.clone()
        optimizer.step()
        first, second = tensors(drained(both)), tensors(drained(one))
    assert list(first) == [(1, "gradient", "embed.weight"), (1, "parameter", "embed.weight")]
    assert list(second) == [(1, "gradient", "head.weight"), (1, "parameter", "head.weight")]
    for told, path in ((first, "embed.weight"), (second, "head.weight")):
        assert torch.equal(told[1, "gradient", path], gradient)
        assert torch.equal(told[1, "parameter", path], embed.weight)


def test_a_parameter_that_is_replaced_is_told_as_it_is_now() -> None:
    model = nn.Linear(2, 1, bias=False)
    first = torch.optim.SGD(model.parameters(), lr=0.1)
    with following(model) as loop:
        watch = loop.watch(kinds=("parameter",), payload="tensor")
        model(torch.ones(1, 2)).sum().backward()
        first.step()
        model.weight = nn.Parameter(torch.full((1, 2), 7.0))
        second = torch.optim.SGD(model.parameters(), lr=0.0)
        model(torch.ones(1, 2)).sum().backward()
        second.step()
        told = tensors(drained(watch))
    assert list(told) == [(1, "parameter", "weight"), (2, "parameter", "weight")]
    assert torch.equal(told[2, "parameter", "weight"], torch.full((1, 2), 7.0))


def test_no_module_has_a_hook_for_it_and_training_is_bit_for_bit_the_same() -> None:
    model = net()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    other = torch.optim.AdamW(twin.parameters(), lr=0.1)
    with following(model, optimizer) as loop:
        before = hook_tables(model)
        watch = loop.watch(kinds=BOTH, payload="histogram")
        assert hook_tables(model) == before
        for seed in range(3):
            for one, its in ((model, optimizer), (twin, other)):
                torch.manual_seed(seed)
                its.zero_grad()
                loss_of(one).backward()
                its.step()
        events = drained(watch)
        assert len(events) == 3 * 2 * 4
        assert all(event.values[0].histogram is not None for event in events)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
