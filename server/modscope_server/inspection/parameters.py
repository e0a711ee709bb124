"""Parameters and buffers: listed in PyTorch's order with ties told, and found by path."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from modscope.paths import join
from modscope_server.errors import NoGrad
from modscope_server.inspection.lookup import find_tensor
from modscope_server.inspection.members import Kind, non_persistent, tensors
from modscope_server.inspection.optimizers import Groups
from modscope_server.inspection.records import LocatedTensor, TensorRecord
from modscope_server.inspection.tensors import (
    device_name,
    dtype_name,
    has_grad,
    numel_of,
    shape_of,
    unreadable_reason,
)
from modscope_server.inspection.walk import walk

__all__ = [
    "LocatedTensor",
    "find_tensor",
    "located_buffers",
    "located_parameters",
    "record_of",
    "records_of",
    "tensor_of",
    "tensor_record",
]


def located_parameters(root: nn.Module) -> list[LocatedTensor]:
    """The parameters in named_parameters order: a tied tensor once, with its other paths."""
    return _located(root, "_parameters")


def located_buffers(root: nn.Module) -> list[LocatedTensor]:
    """The buffers in named_buffers order: a tied tensor once, with its other paths."""
    return _located(root, "_buffers")


def tensor_record(root: nn.Module, path: str, groups: Groups | None = None) -> TensorRecord:
    """The parameter, or else the buffer, at a path, under its first path and with all its other ones.

    Raises UnknownPath.
    """
    found = find_tensor(root, path)
    listed = located_parameters(root) if found.persistent is None else located_buffers(root)
    return record_of(next((one for one in listed if one.tensor is found.tensor), found), groups)


def records_of(located: Iterable[LocatedTensor], groups: Groups | None = None) -> list[TensorRecord]:
    """Records of located tensors, in their order."""
    return [record_of(one, groups) for one in located]


def record_of(located: LocatedTensor, groups: Groups | None = None) -> TensorRecord:
    """The record of one located tensor, without statistics."""
    t = located.tensor
    with torch._C.DisableTorchFunctionSubclass():
        return TensorRecord(
            path=located.path,
            shape=shape_of(t),
            dtype=dtype_name(t),
            device=device_name(t),
            numel=numel_of(t),
            requires_grad=t.requires_grad,
            has_grad=has_grad(t),
            tied_with=located.aliases,
            optimizer=None if groups is None else groups.index(t),
            module_type=type(located.owner).__name__,
            raw_path=located.raw_path,
            unreadable=unreadable_reason(t),
            persistent=located.persistent,
        )


def tensor_of(located: LocatedTensor, what: str, groups: Groups | None = None) -> torch.Tensor:
    """The tensor that a read asks for: "value" (also ""), "grad", or a key of the optimizer's state.

    Raises NoGrad where the parameter has no gradient, BadRequest where the optimizer has no such state.
    """
    if what in ("", "value"):
        return located.tensor
    if what == "grad":
        grad = located.tensor.grad if has_grad(located.tensor) else None
        if grad is None:
            frozen = "" if located.tensor.requires_grad else "; it is frozen (requires_grad is False)"
            raise NoGrad(
                f"{located.path!r} has no gradient now{frozen}",
                hint="a gradient is there from backward() until the optimizer's zero_grad()",
            )
        return grad
    return (groups or Groups.of(())).state(located.tensor, what)


def _located(root: nn.Module, kind: Kind) -> list[LocatedTensor]:
    found: dict[int, LocatedTensor] = {}
    others: dict[int, dict[str, None]] = {}
    for path, raw_path, module, _, _, _, _ in walk(root).visits:
        hold_back = non_persistent(module) if kind == "_buffers" else None
        for name, tensor in tensors(module, kind):
            key = id(tensor)
            full = join(path, name)
            first = found.get(key)
            if first is None:
                raw = full if raw_path is path else join(raw_path, name)
                persistent = None if hold_back is None else name not in hold_back
                found[key] = LocatedTensor(full, raw, name, tensor, module, path, persistent)
            elif first.path != full:
                others.setdefault(key, {})[full] = None
    return [_with_aliases(one, others[key]) if key in others else one for key, one in found.items()]


def _with_aliases(located: LocatedTensor, aliases: Iterable[str]) -> LocatedTensor:
    return LocatedTensor(
        located.path,
        located.raw_path,
        located.name,
        located.tensor,
        located.owner,
        located.owner_path,
        located.persistent,
        tuple(aliases),
    )
