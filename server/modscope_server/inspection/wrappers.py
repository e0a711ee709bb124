"""Which modules only wrap another one, decided by class and without importing any of the classes."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

from modscope_server.inspection.members import child

__all__ = ["inner_name", "inner_of"]

_INNER: dict[str, str] = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "_fsdp_wrapped_module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": (
        "_checkpoint_wrapped_module"
    ),
    "torch.optim.swa_utils.AveragedModel": "module",
}
"""Qualified class name -> name of the child that the wrapper wraps."""

_known: WeakKeyDictionary[type, str] = WeakKeyDictionary()


def inner_name(cls: type) -> str:
    """Name under which instances of a wrapper class keep what they wrap; "" for any other class."""
    name = _known.get(cls)
    if name is None:
        name = next(
            (_INNER[key] for c in cls.__mro__ if (key := f"{c.__module__}.{c.__qualname__}") in _INNER), ""
        )
        _known[cls] = name
    return name


def inner_of(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and module that a wrapper wraps; None where the module is no wrapper."""
    name = inner_name(type(module))
    inner = child(module, name) if name else None
    return None if inner is None else (name, inner)
