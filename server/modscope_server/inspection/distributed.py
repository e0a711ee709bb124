"""What must not be done to a model on one rank alone; told by class names, since importing FSDP is slow."""

from __future__ import annotations

import torch
from torch import nn

from modscope_server.errors import WouldBreakTraining
from modscope_server.inspection.counts import reachable

__all__ = ["gradient_wrapper", "is_a", "refuse_on_one_rank"]

_SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def is_a(module: nn.Module, *names: str) -> bool:
    """Whether a class of one of these names is in the module's class hierarchy."""
    return any(cls.__name__ in names for cls in type(module).__mro__)


def gradient_wrapper(module: nn.Module) -> str:
    """ "DDP" or "FSDP" where the module reduces the gradients of what is below it over ranks, else ""."""
    if is_a(module, *_SHARDED):
        return "FSDP"
    return "DDP" if is_a(module, "DistributedDataParallel") else ""


def refuse_on_one_rank(root: nn.Module, what: str) -> None:
    """Raises WouldBreakTraining where the model is sharded over ranks that would all have to join."""
    group = torch.distributed
    ranks = group.get_world_size() if group.is_available() and group.is_initialized() else 1
    if ranks > 1 and any(is_a(module, *_SHARDED) for module in reachable(root)):
        raise WouldBreakTraining(
            f"the model is sharded over {ranks} ranks: {what} on one of them would wait for the others",
            hint="do it inside the training script, on every rank",
        )
