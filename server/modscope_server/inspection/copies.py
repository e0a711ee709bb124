"""Copying and putting back what optimizers keep: tensors, numbers, and containers of them."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch

from modscope_server.inspection.backup import same_bits, write_elements

__all__ = ["bytes_of", "copied", "put_into", "same"]


class _Parked(NamedTuple):
    """A copy on the CPU of a tensor of an accelerator, to take none of its memory."""

    copy: torch.Tensor
    device: torch.device


def copied(value: Any) -> Any:
    """A copy that shares nothing, for `put_into`; what cannot be copied, such as a lock, is kept itself.

    What occurs twice in it is one thing in the copy, too.
    """
    return _mapped(value, _parked, {})


def put_into(now: Any, kept: Any) -> Any:
    """What shall stand in the place of `now`: itself with the kept content where that fits, else a copy."""
    if isinstance(kept, (torch.Tensor, _Parked)) and _fits(now, kept):
        write_elements(now, kept.copy if isinstance(kept, _Parked) else kept)
        return now
    if isinstance(kept, dict) and isinstance(now, dict):
        values = {name: put_into(now.get(name), item) for name, item in kept.items()}
        now.clear()
        now.update(values)
        return now
    return _mapped(kept, lambda tensor: tensor.detach().clone(), {})


def same(now: Any, kept: Any) -> bool:
    """Whether something is bit for bit what was kept; functions and the like are told by identity."""
    if now is kept:
        return True
    if isinstance(kept, (torch.Tensor, _Parked)):
        return _fits(now, kept) and same_bits(now, _there(kept))
    if isinstance(kept, dict):
        return (
            isinstance(now, dict)
            and now.keys() == kept.keys()
            and all(same(now[name], item) for name, item in kept.items())
        )
    if type(now) is not type(kept):
        return False
    if isinstance(kept, (list, tuple)):
        return len(now) == len(kept) and all(map(same, now, kept))
    # repr tells 0.0 from -0.0 and calls nan equal to itself.
    return isinstance(kept, (bool, int, float, complex, str, bytes)) and repr(now) == repr(kept)


def bytes_of(value: Any) -> int:
    """Bytes of the tensors in what `copied` gave."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.itemsize if value.layout is torch.strided else 0
    if isinstance(value, dict):
        return sum(map(bytes_of, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(bytes_of, value))
    return 0


def _mapped(value: Any, of_tensor: Any, known: dict[int, Any]) -> Any:
    if id(value) in known:
        return known[id(value)]
    made: Any
    if isinstance(value, torch.Tensor):
        made = of_tensor(value)
    elif isinstance(value, _Parked):
        made = _there(value)
    elif isinstance(value, dict):
        made = {name: _mapped(item, of_tensor, known) for name, item in value.items()}
    elif isinstance(value, list):
        made = [_mapped(item, of_tensor, known) for item in value]
    elif type(value) is tuple:
        made = tuple(_mapped(item, of_tensor, known) for item in value)
    else:
        try:
            made = copy.deepcopy(value)
        except Exception:
            made = value
    known[id(value)] = made
    return made


def _parked(tensor: torch.Tensor) -> torch.Tensor | _Parked:
    if tensor.device.type in ("cpu", "meta"):
        return tensor.detach().clone()
    return _Parked(tensor.detach().to("cpu", copy=True), tensor.device)


def _there(kept: torch.Tensor | _Parked) -> torch.Tensor:
    """The kept tensor on the device that it is for."""
    return kept.copy.to(kept.device) if isinstance(kept, _Parked) else kept


def _fits(now: Any, kept: torch.Tensor | _Parked) -> bool:
    tensor, device = kept if isinstance(kept, _Parked) else (kept, kept.device)
    return isinstance(now, torch.Tensor) and (now.shape, now.dtype, now.device) == (
        tensor.shape,
        tensor.dtype,
        device,
    )
