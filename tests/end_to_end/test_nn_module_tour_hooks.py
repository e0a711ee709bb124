"""The last item of the tour: hooks that change a value, against PyTorch's own in the same test."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tests.end_to_end.serving import cli, served
from tests.plain_models import HeadOfLinear


def gradients(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, then the gradient of each parameter."""
    module.zero_grad()
    output = module(x)
    output.square().sum().backward()
    found = [output.detach()]
    for parameter in module.parameters():
        found.append(torch.zeros(()) if parameter.grad is None else parameter.grad.clone())
    return found


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_11_a_forward_hook_that_doubles_the_output_of_the_mlp() -> None:
    module = HeadOfLinear()
    twin = copy.deepcopy(module)
    x = torch.randn(4, 1)
    untouched = gradients(module, x)
    given = module.mlp(x)
    handle = twin.mlp.register_forward_hook(lambda _, args, output: output * 2)
    with served(module) as live:
        with live.model.intervene("mlp", scale=2.0):
            assert torch.equal(module.mlp(x), given * 2), "doubled exactly"
            assert same(gradients(module, x), gradients(twin, x))
        handle.remove()
        assert torch.equal(module.mlp(x), given), "undone exactly"
        assert same(gradients(module, x), untouched)
        assert not module.mlp._forward_hooks


def test_11_a_pre_hook_that_changes_the_input() -> None:
    module = HeadOfLinear()
    twin = copy.deepcopy(module)
    x = torch.randn(4, 1)
    untouched = gradients(module, x)
    handle = twin.mlp.w2.register_forward_pre_hook(lambda _, args: (args[0] + 1.5,))
    with served(module) as live:
        changed = live.model.intervene("mlp.w2", hook="forward_pre", add=1.5)
        assert same(gradients(module, x), gradients(twin, x))
        changed.remove()
        handle.remove()
        assert same(gradients(module, x), untouched)


def trained(module: nn.Module, optimizer: Any, inputs: list[torch.Tensor]) -> list[float]:
    losses = []
    for x in inputs:
        optimizer.zero_grad()
        loss = module(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_11_training_with_it_and_after_it_is_that_of_the_hook_by_hand() -> None:
    module = HeadOfLinear()
    twin = copy.deepcopy(module)
    inputs = [torch.randn(4, 1) for _ in range(6)]
    ours, theirs = (torch.optim.AdamW(one.parameters(), lr=0.05) for one in (module, twin))
    hook = twin.mlp.register_forward_hook(lambda _, args, output: output * 2)
    expected = trained(twin, theirs, inputs[:3])
    hook.remove()
    expected += trained(twin, theirs, inputs[3:])
    with served(module, ours) as live:
        handle = live.model.intervene("mlp", scale=2.0)
        losses = trained(module, ours, inputs[:3])
        handle.remove()
        losses += trained(module, ours, inputs[3:])
        assert handle.info().applied == 3
    assert losses == expected
    assert same(list(module.parameters()), list(twin.parameters()))


def test_11_from_a_terminal_it_stays_until_it_is_taken_off() -> None:
    module = HeadOfLinear()
    x = torch.randn(4, 1)
    given = module.mlp(x)
    with served(module) as live:
        done = cli("intervene", "mlp", "--scale", "2", "-o", "json", scope=live.scope)
        assert done.code == 0 and done.json["persist"]
        assert torch.equal(module.mlp(x), given * 2)
        assert cli("unhook", done.json["id"], scope=live.scope).code == 0
        assert torch.equal(module.mlp(x), given)
