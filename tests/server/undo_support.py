"""Models that have been trained, and all of their state as plain bytes, to be compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from modscope_server.inspection.tensors import to_data

__all__ = ["OPTIMIZERS", "Net", "bits", "make_model", "optimizer_bits", "stepper", "trained"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1, amsgrad=True),
    "lbfgs": lambda params: torch.optim.LBFGS(params, lr=0.01, max_iter=3, history_size=4),
}


class Net(nn.Module):
    """A small model with a normalisation layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Two numbers for each row."""
        out: torch.Tensor = self.last(self.norm(self.first(batch)))
        return out


def make_model() -> Net:
    """A model of fixed values."""
    torch.manual_seed(0)
    return Net()


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A function that trains for one step; its closure serves LBFGS, too."""

    def step() -> None:
        batch = torch.randn(8, 3)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(batch).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]

    return step


def trained(
    make: Callable[..., torch.optim.Optimizer], steps: int = 3
) -> tuple[Net, torch.optim.Optimizer, Callable[[], None]]:
    """A model after some steps, its optimizer, and the function that trains on."""
    model = make_model()
    optimizer = make(model.parameters())
    step = stepper(model, optimizer)
    for _ in range(steps):
        step()
    return model, optimizer, step


def bits(model: nn.Module) -> dict[str, Any]:
    """All that a model is: bytes, requires_grad and training flags."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        **{name: _plain(tensor) for name, tensor in tensors},
        **{f"{name}.requires_grad": tensor.requires_grad for name, tensor in tensors},
        **{f"{name}.training": module.training for name, module in model.named_modules()},
    }


def optimizer_bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that an optimizer is: its groups, members by name, and state."""
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    groups = [
        {
            **_plain({k: v for k, v in group.items() if k != "params"}),
            "params": [names[id(p)] for p in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    return {"groups": groups, "state": {names[id(p)]: _plain(kept) for p, kept in optimizer.state.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        data = to_data(value)
        return data.dtype, data.shape, bytes(data.data)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value)
