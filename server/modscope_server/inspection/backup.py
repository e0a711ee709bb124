"""A model's tensors and the names they are bound to, kept so that they can be put back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["Backup", "Bindings", "TensorCopy", "has_value", "same_bits", "write_elements", "writing_to"]

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TensorCopy:
    """A tensor's value as it was when it was kept; on the CPU, to take no memory of an accelerator."""

    __slots__ = ("_alias", "copy", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._alias = tensor.data
        self.copy = self._alias.clone() if tensor.device.type == "cpu" else self._alias.to("cpu", copy=True)

    @property
    def nbytes(self) -> int:
        """Bytes that the copy takes."""
        return self.copy.numel() * self.copy.itemsize if self.copy.layout is torch.strided else 0

    def put_back(self) -> None:
        """Give the tensor its memory and its value back, at the moment at which it was kept.

        Writes through an alias with a version counter of its own, so that the counter of the tensor is
        not moved, and only where a bit differs. A tensor whose `data` was replaced gets its memory back.
        """
        if not _same_place(self.tensor, self._alias):
            self.tensor.data = self._alias
        write_elements(self._alias, self.copy)

    def write_back(self) -> None:
        """Write the value into the memory that the tensor has now, as any later write is made."""
        write_elements(self.tensor, self.copy)


class Backup:
    """The values of live tensors as they were when they were kept."""

    def __init__(self, tensors: Iterable[torch.Tensor] = ()) -> None:
        self._kept: dict[int, TensorCopy] = {}
        for tensor in tensors:
            self.keep(tensor)

    def keep(self, tensor: torch.Tensor) -> None:
        """Copy the tensor's value, once; a lazy or meta tensor has none."""
        if has_value(tensor) and id(tensor) not in self._kept:
            self._kept[id(tensor)] = TensorCopy(tensor)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that are kept."""
        return [kept.tensor for kept in self._kept.values()]

    def restore(self) -> None:
        """Give every tensor its memory and its value back."""
        for kept in self._kept.values():
            kept.put_back()


class Bindings:
    """Which tensors the modules' parameter and buffer names were bound to, and in which order."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._tables: list[tuple[Any, dict[str, Any]]] = []
        self._unsaved: list[tuple[nn.Module, set[str]]] = []
        for module in modules:
            for table in (module._parameters, module._buffers):
                self._tables.append((table, dict(table.items())))
            self._unsaved.append((module, set(module._non_persistent_buffers_set)))

    def settle(self) -> None:
        """Where a name was bound to a new tensor, copy that one's value into the old and bind the old again.

        Raises ValueError for a name that came, went, or got another shape or dtype.
        """
        for live, before in self._tables:
            now = dict(live.items())
            if now.keys() != before.keys():
                raise ValueError(f"it changes which tensors there are: {sorted(now.keys() ^ before.keys())}")
            for name, old in before.items():
                new = now[name]
                if new is old:
                    continue
                if old is None or new is None or new.shape != old.shape or new.dtype != old.dtype:
                    raise ValueError(f"it makes another kind of tensor of {name!r}")
                with writing_to(old):
                    old.copy_(new)
                live[name] = old

    def restore(self) -> None:
        """Bind every name as it was, take added ones away and give removed ones back."""
        for live, before in self._tables:
            now = dict(live.items())
            if list(now) != list(before):
                live.clear()
                live.update(before)
                continue
            for name, tensor in before.items():
                if now[name] is not tensor:
                    live[name] = tensor
        for module, names in self._unsaved:
            if module._non_persistent_buffers_set != names:
                module._non_persistent_buffers_set = names


def has_value(tensor: torch.Tensor) -> bool:
    """Whether there are elements that can be kept; a lazy, meta or released tensor has none."""
    if is_lazy(tensor) or tensor.is_meta:
        return False
    strided = tensor.layout is torch.strided and not tensor.is_nested
    return not strided or not tensor.numel() or bool(tensor.untyped_storage().nbytes())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one device have the same dtype, shape and bits.

    nan equals itself, 0.0 is not -0.0; tensors without plain bytes are never called the same.
    """
    if a.dtype != b.dtype or a.shape != b.shape or a.layout is not b.layout:
        return False
    if a.layout is not torch.strided or a.is_quantized or a.is_nested:
        return False
    return torch.equal(_bits(a), _bits(b))


def write_elements(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Give a tensor the elements of one of its dtype and shape, where a bit differs."""
    there = value.to(tensor.device)
    if not same_bits(tensor, there):
        with writing_to(tensor):
            tensor.copy_(there)


def writing_to(tensor: torch.Tensor) -> torch.inference_mode | torch.no_grad:
    """The context in which the tensor may be written in place without autograd."""
    return torch.inference_mode() if tensor.is_inference() else torch.no_grad()


def _bits(t: torch.Tensor) -> torch.Tensor:
    """The elements as whole numbers of their own size, two for a complex one; copies nothing."""
    t = t.detach().resolve_conj().resolve_neg()
    if t.is_complex():
        t = torch.view_as_real(t)
    return t.view(_WHOLE[t.itemsize])


def _same_place(tensor: torch.Tensor, alias: torch.Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_nested:
        return True
    return (
        tensor.shape == alias.shape
        and tensor.dtype == alias.dtype
        and tensor.device == alias.device
        and tensor.stride() == alias.stride()
        and tensor.data_ptr() == alias.data_ptr()
    )
