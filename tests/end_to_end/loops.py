"""Training loops of every kind that people write, each as one iteration to be called again and again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import modscope_server

__all__ = ["KINDS", "Loop", "Probed"]


class Probed(nn.Module):
    """A small network with two values that no training moves: a buffer, and a weight that is always frozen.

    Each forward notes what it finds in the buffer, together with the step count.
    """

    def __init__(self, inputs: int = 4, outputs: int = 1) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, outputs)
        self.still = nn.Parameter(torch.zeros(outputs), requires_grad=False)
        self.register_buffer("probe", torch.zeros(()))
        self.probe: torch.Tensor
        self.seen: list[tuple[int, float]] = []
        self.steps: Callable[[], int] = lambda: 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.steps(), float(self.probe)))
        y: torch.Tensor = self.last(torch.tanh(self.norm(self.first(x)))) + self.still
        return y


@dataclass
class Loop:
    """A loop, ready to be attached to and run."""

    models: Mapping[str, Probed]
    iterate: Callable[[], None]
    optimizers: list[Optimizer] | None
    """What attach is told of; None leaves it to find them."""
    extras: dict[str, Any] = field(default_factory=dict)
    marks: Callable[[], None] = lambda: None
    """What the loop calls at the end of an iteration: scope.step, once attached."""
    done: int = 0
    """Iterations that have ended."""

    def attach(self, **options: Any) -> modscope_server.Scope:
        """Serves its models, writable."""
        options = {"writable": True, "extras": self.extras, **options}
        scope = modscope_server.attach(dict(self.models), optimizer=self.optimizers, **options)
        self.marks = scope.step
        for model in self.models.values():
            model.steps = lambda: scope.step_count
        return scope

    def __call__(self) -> None:
        """One iteration."""
        self.iterate()
        self.done += 1


def _batch(inputs: int = 4) -> torch.Tensor:
    return torch.randn(16, inputs)


def _loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = (model(x) - x.sum(1, keepdim=True)).square().mean()
    return loss


def _with(make: Callable[[Probed], Optimizer], *, found: bool = False) -> Loop:
    model = Probed()
    optimizer = make(model)

    def iterate() -> None:
        optimizer.zero_grad()
        _loss(model, _batch()).backward()
        optimizer.step()

    return Loop({"model": model}, iterate, None if found else [optimizer])


def _plain() -> Loop:
    return _with(lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))


def _found() -> Loop:
    return _with(lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-3), found=True)


def _foreach() -> Loop:
    return _with(lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True))


def _fused() -> Loop:
    return _with(lambda model: torch.optim.Adam(model.parameters(), lr=1e-3, fused=True))


def _accumulation() -> Loop:
    model = Probed()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def iterate() -> None:
        optimizer.zero_grad(set_to_none=False)
        for _ in range(4):
            (_loss(model, _batch()) / 4).backward()
        optimizer.step()

    return Loop({"model": model}, iterate, [optimizer])


def _adversaries() -> Loop:
    generator, critic = Probed(4, 4), Probed(4, 1)
    first = torch.optim.Adam(critic.parameters(), lr=1e-3)
    second = torch.optim.Adam(generator.parameters(), lr=1e-3)

    def iterate() -> None:
        fake = generator(_batch()).tanh()
        first.zero_grad()
        (critic(fake.detach()).mean() - critic(_batch()).mean()).backward()
        first.step()
        second.zero_grad()
        (-critic(fake).mean()).backward()
        second.step()

    return Loop({"generator": generator, "critic": critic}, iterate, [first, second])


def _one_root_two_optimizers() -> Loop:
    model = Probed()
    lower = torch.optim.SGD(model.first.parameters(), lr=1e-3)
    upper = torch.optim.AdamW([*model.norm.parameters(), *model.last.parameters()], lr=1e-3)

    def iterate() -> None:
        loss = _loss(model, _batch())
        lower.zero_grad()
        upper.zero_grad()
        loss.backward()
        upper.step()
        lower.step()

    return Loop({"model": model}, iterate, [lower, upper])


def _forwards_before_one_backward() -> Loop:
    model = Probed()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def iterate() -> None:
        optimizer.zero_grad()
        losses = [_loss(model, _batch()) for _ in range(5)]
        torch.stack(losses).mean().backward()
        optimizer.step()

    return Loop({"model": model}, iterate, [optimizer])


def _evaluation_between() -> Loop:
    model = Probed()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    numbers = itertools.count()

    def iterate() -> None:
        if next(numbers) % 3 == 0:
            model.eval()
            with torch.no_grad():
                _loss(model, _batch())
            model.train()
        optimizer.zero_grad()
        loss = _loss(model, _batch())
        with torch.no_grad():
            _loss(model, _batch())
        loss.backward()
        optimizer.step()

    return Loop({"model": model}, iterate, [optimizer])


def _by_hand() -> Loop:
    model = Probed()

    def iterate() -> None:
        loss = _loss(model, _batch())
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(1e-3 * parameter.grad)
                    parameter.grad.zero_()
        loop.marks()

    loop = Loop({"model": model}, iterate, None)
    return loop


def _scaled() -> Loop:
    """With a GradScaler that finds an overflow in every fifth iteration, the first included."""
    model = Probed()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    numbers = itertools.count()

    def iterate() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = _loss(model, _batch())
        if next(numbers) % 5 == 0:
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return Loop({"model": model}, iterate, [optimizer], {"scaler": scaler})


def _closure() -> Loop:
    model = Probed()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-2, max_iter=4)

    def iterate() -> None:
        x = _batch()

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = _loss(model, x)
            loss.backward()
            return loss

        optimizer.step(closure)

    return Loop({"model": model}, iterate, [optimizer])


def _in_backward() -> Loop:
    model = Probed()
    for parameter in model.parameters():
        if parameter.requires_grad:
            own = torch.optim.SGD([parameter], lr=1e-3)

            def update(held: torch.Tensor, own: Optimizer = own) -> None:
                own.step()
                own.zero_grad()

            parameter.register_post_accumulate_grad_hook(update)

    return Loop({"model": model}, lambda: _loss(model, _batch()).backward(), None)


KINDS: dict[str, Callable[[], Loop]] = {
    "plain": _plain,
    "optimizer found": _found,
    "foreach": _foreach,
    "fused": _fused,
    "accumulation": _accumulation,
    "adversaries": _adversaries,
    "one root, two optimizers": _one_root_two_optimizers,
    "forwards before one backward": _forwards_before_one_backward,
    "evaluation between": _evaluation_between,
    "by hand": _by_hand,
    "scaled": _scaled,
    "closure": _closure,
    "in backward": _in_backward,
}
"""What makes a loop, by what is special about it."""
