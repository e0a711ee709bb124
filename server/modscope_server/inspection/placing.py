"""Giving live tensors and values what they shall be, in place where that can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from modscope_server.inspection.backup import write_elements
from modscope_server.inspection.edits import overlaps_itself

__all__ = ["fits", "present_device", "put_in_place", "set_requires_grad", "storages"]


def set_requires_grad(tensor: torch.Tensor, wanted: bool) -> None:
    """Set the flag, where it is another."""
    if tensor.requires_grad != wanted:
        tensor.requires_grad_(wanted)


def put_in_place(now: Any, value: Any) -> Any:
    """What shall stand there: the present tensor with the value's elements where it fits, else the value."""
    if (
        isinstance(now, torch.Tensor)
        and isinstance(value, torch.Tensor)
        and type(now) is type(value)
        and now.device == value.device
        and fits(now, value)
    ):
        write_elements(now, value)
        return now
    return value


def fits(now: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the value's elements can be written into the present tensor, wherever it lives."""
    return (
        now.layout is torch.strided
        and now.shape == value.shape
        and now.dtype == value.dtype
        and not overlaps_itself(now)
    )


def storages(value: Any) -> Iterator[int]:
    """Where the tensors of a value keep their elements."""
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided and value.numel():
            yield value.untyped_storage().data_ptr()
    elif isinstance(value, dict):
        for item in value.values():
            yield from storages(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from storages(item)


def present_device(device: str) -> str:
    """The device where this process has it, else the CPU."""
    wanted = torch.device(device)
    count = getattr(getattr(torch, wanted.type, None), "device_count", None)
    return device if count is not None and (wanted.index or 0) < count() else "cpu"
