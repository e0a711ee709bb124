"""Training runs that can be repeated step by step, with an edit after one of the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["MAKERS", "Maker", "Repeatable", "layers", "same_values"]

Maker = Callable[[Any], Optimizer]

_OPTIM = torch.optim
_WITH: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1}

MAKERS: dict[str, Maker] = {
    "sgd": lambda p: _OPTIM.SGD(p, lr=0.02),
    "sgd_momentum": lambda p: _OPTIM.SGD(p, momentum=0.9, **_WITH),
    "sgd_nesterov": lambda p: _OPTIM.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "sgd_foreach": lambda p: _OPTIM.SGD(p, momentum=0.9, foreach=True, **_WITH),
    "sgd_fused": lambda p: _OPTIM.SGD(p, momentum=0.9, fused=True, **_WITH),
    "adam": lambda p: _OPTIM.Adam(p, **_WITH),
    "adam_amsgrad": lambda p: _OPTIM.Adam(p, lr=0.02, amsgrad=True),
    "adam_foreach": lambda p: _OPTIM.Adam(p, lr=0.02, foreach=True),
    "adam_fused": lambda p: _OPTIM.Adam(p, lr=0.02, fused=True),
    "adamw": lambda p: _OPTIM.AdamW(p, **_WITH),
    "adamw_foreach": lambda p: _OPTIM.AdamW(p, foreach=True, **_WITH),
    "adamw_fused": lambda p: _OPTIM.AdamW(p, fused=True, **_WITH),
    "rmsprop": lambda p: _OPTIM.RMSprop(p, momentum=0.9, centered=True, lr=0.002, weight_decay=0.1),
    "rmsprop_foreach": lambda p: _OPTIM.RMSprop(p, lr=0.002, momentum=0.9, foreach=True),
    "adagrad": lambda p: _OPTIM.Adagrad(p, **_WITH),
    "adagrad_fused": lambda p: _OPTIM.Adagrad(p, fused=True, **_WITH),
    "adadelta": lambda p: _OPTIM.Adadelta(p, **_WITH),
    "adamax": lambda p: _OPTIM.Adamax(p, **_WITH),
    "asgd": lambda p: _OPTIM.ASGD(p, t0=1.0, **_WITH),
    "nadam": lambda p: _OPTIM.NAdam(p, **_WITH),
    "radam": lambda p: _OPTIM.RAdam(p, **_WITH),
    "rprop": lambda p: _OPTIM.Rprop(p, lr=0.02),
}
"""Optimizers that take any dense parameter and step from one gradient."""
if hasattr(_OPTIM, "Adafactor"):
    MAKERS["adafactor"] = lambda p: _OPTIM.Adafactor(p, **_WITH)
if hasattr(_OPTIM, "Muon"):
    MAKERS["muon"] = lambda p: _OPTIM.Muon(p, **_WITH)


def layers(*, bias: bool = True) -> nn.Sequential:
    """Three layers, each of which sees the gradients of the ones behind it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8, bias=bias),
        nn.Tanh(),
        nn.Linear(8, 8, bias=bias),
        nn.Tanh(),
        nn.Linear(8, 2, bias=bias),
    )


class Repeatable:
    """A training run whose step number alone decides what each step sees.

    Args:
        model: is trained in place.
        optimizer: steps it.
        set_to_none: how gradients are cleared.
        micro: backwards in each step, their gradients accumulated.
        pause: called after each backward but the last, with the step and the number of the backward.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        set_to_none: bool = True,
        micro: int = 1,
        pause: Callable[[int, int], None] = lambda step, number: None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._set_to_none, self._micro, self._pause = set_to_none, micro, pause
        self.values: list[list[torch.Tensor]] = [self._now()]
        """The parameters after each step; first before any."""

    @property
    def steps(self) -> int:
        return len(self.values) - 1

    def step(self) -> None:
        number = self.steps

        def closure() -> Any:
            self.optimizer.zero_grad(set_to_none=self._set_to_none)
            total = 0.0
            for micro in range(self._micro):
                loss = self._loss(number, micro)
                loss.backward()
                total += loss.item()
                if micro + 1 < self._micro:
                    self._pause(number, micro)
            return total

        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.step(closure)
        else:
            closure()
            self.optimizer.step()
        self.values.append(self._now())

    def run_to(self, steps: int) -> None:
        while self.steps < steps:
            self.step()

    def _loss(self, number: int, micro: int) -> Any:
        draw = torch.Generator().manual_seed(1000 * number + micro)
        inputs = torch.randn(8, 4, generator=draw)
        return (self.model(inputs) - inputs[:, :2]).square().mean()

    def _now(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def same_values(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[bool]:
    """For each parameter whether its bits are the same."""
    return [
        torch.equal(a.reshape(-1).view(torch.int32), b.reshape(-1).view(torch.int32))
        for a, b in zip(one, other, strict=True)
    ]
