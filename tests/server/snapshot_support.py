"""What the tests of snapshots share: a run without a server, and everything that decides how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from modscope_server.errors import SnapshotMismatch
from modscope_server.inspection.changes import Change
from modscope_server.inspection.norm_stats import NormHolds
from modscope_server.inspection.snapshot import Image, Run, take
from modscope_server.inspection.snapshot_restore import plan_restore

__all__ = ["Steps", "image_of", "mismatch", "network", "restored", "run_of", "state_of", "train"]


class Steps:
    """A step count."""

    def __init__(self) -> None:
        self.count = 0

    def go_to(self, count: int) -> None:
        self.count = count


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 1))


def run_of(
    models: nn.Module | dict[str, nn.Module],
    optimizers: Iterable[Optimizer] = (),
    steps: Steps | None = None,
    holds: NormHolds | None = None,
    **extras: Any,
) -> Run:
    steps = steps or Steps()
    return Run(
        models={"model": models} if isinstance(models, nn.Module) else models,
        optimizers=list(optimizers),
        extras=extras,
        holds=holds or NormHolds(),
        step_count=lambda: steps.count,
        set_step_count=steps.go_to,
    )


def image_of(run: Run, reserve: Callable[[int], None] = lambda size: None) -> Image:
    """A snapshot, whose JSON has been text in between."""
    with torch.no_grad():
        image = take(run, "mark", reserve)
    return Image(json.loads(json.dumps(image.run, allow_nan=False)), image.table, image.notes)


def restored(image: Image, run: Run, model: str = "model") -> tuple[Change, tuple[str, ...]]:
    """The change, carried out, and its notes."""
    with torch.no_grad():
        change = plan_restore(image, run, model)
        return change, change.apply()


def mismatch(image: Image, run: Run) -> str:
    """What the refusal says; nothing is changed by it."""
    before = state_of(run)
    try:
        restored(image, run)
    except SnapshotMismatch as error:
        assert state_of(run) == before
        return error.message
    raise AssertionError("it was not refused")


def train(model: nn.Module, optimizer: Optimizer, times: int = 1) -> list[float]:
    """Losses of so many iterations."""
    losses = []
    for _ in range(times):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            losses.append(loss.item())
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    return losses


def state_of(run: Run) -> str:
    """Bits, identities, flags and states of a run as text."""
    parts: list[Any] = [run.step_count()]
    for root in run.models.values():
        for module in root.modules():
            parts.append(module.training)
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    parts += [id(tensor), tensor.requires_grad, *map(_plain, (tensor, tensor.grad))]
    for optimizer in run.optimizers:
        parts += [_plain(optimizer.state_dict()), [id(group) for group in optimizer.param_groups]]
    for name, extra in run.extras.items():
        parts += [name, _plain(extra.state_dict()) if hasattr(extra, "state_dict") else repr(extra)]
    parts.append(torch.get_rng_state().tolist())
    return repr(parts)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        raw = dense.resolve_conj().contiguous().reshape(-1)
        kind = (str(value.dtype), tuple(value.shape), str(value.device))
        return (*kind, raw.view(torch.uint8).tolist() if raw.numel() else [])
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
