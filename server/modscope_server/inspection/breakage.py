"""What a freeze would break in the training that goes on."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from modscope_server.errors import WouldBreakTraining
from modscope_server.inspection.counts import reachable
from modscope_server.inspection.distributed import gradient_wrapper
from modscope_server.inspection.members import tensors
from modscope_server.inspection.param_groups import held_by

__all__ = ["check_freeze", "wrapper_around"]


def check_freeze(frozen: set[int], root: nn.Module, scaled: Iterable[Optimizer]) -> None:
    """Refuse a freeze after which backward, GradScaler.step or a wrapper would raise or wait.

    `scaled`: optimizers that a GradScaler steps. Raises WouldBreakTraining.
    """
    trainable = {
        id(tensor)
        for module in reachable(root)
        for _, tensor in tensors(module, "_parameters")
        if tensor.requires_grad
    }
    if trainable and trainable <= frozen:
        raise WouldBreakTraining(
            "no parameter of the model would stay trainable: backward() would raise",
            hint="leave one trainable, or use force=True (--force)",
        )
    for optimizer in scaled:
        held = {id(t) for t in held_by(optimizer) if t.requires_grad}
        if held and held <= frozen:
            raise WouldBreakTraining(
                f"nothing in {type(optimizer).__name__} would stay trainable: GradScaler.step would raise",
                hint="leave one of its parameters trainable, or use force=True (--force)",
            )
    wrapper = wrapper_around(root, frozen & trainable)
    if wrapper:
        raise WouldBreakTraining(
            f"{wrapper} wraps them and waits for each one's gradient on every rank",
            hint="freeze before wrapping, on every rank; or use force=True (--force)",
        )


def wrapper_around(root: nn.Module, ids: set[int]) -> str:
    """ "DDP" or "FSDP" where one of these tensors is below such a wrapper; "" where none is."""
    for module in reachable(root) if ids else ():
        name = gradient_wrapper(module)
        if name and any(
            id(t) in ids for below in reachable(module) for _, t in tensors(below, "_parameters")
        ):
            return name
    return ""
