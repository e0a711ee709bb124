"""A model's tensors and the names they are bound to, kept so that they can be put back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["Backup", "Bindings", "same_bits", "writing_to"]

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Backup:
    """The values of live tensors as they were when they were kept.

    `restore` writes through an alias with a version counter of its own, so that the counter of a
    tensor is not moved, and writes only where a bit differs. A tensor whose `data` was replaced gets
    its memory back.
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = ()) -> None:
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for tensor in tensors:
            self.keep(tensor)

    def keep(self, tensor: torch.Tensor) -> None:
        """Copy the tensor's value, once; a lazy or meta tensor has none."""
        if not is_lazy(tensor) and not tensor.is_meta and id(tensor) not in self._kept:
            alias = tensor.data
            self._kept[id(tensor)] = (tensor, alias, alias.clone())

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that are kept."""
        return [tensor for tensor, _, _ in self._kept.values()]

    @property
    def copies(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The tensors that are kept, each with the copy of its value."""
        return [(tensor, copy) for tensor, _, copy in self._kept.values()]

    def restore(self) -> None:
        """Give every tensor its memory and its value back."""
        for tensor in self.tensors:
            self.restore_one(tensor)

    def restore_one(self, tensor: torch.Tensor) -> None:
        """Give a tensor that is kept its memory and its value back."""
        _, alias, copy = self._kept[id(tensor)]
        if not _same_place(tensor, alias):
            tensor.data = alias
        if not same_bits(alias, copy):
            with writing_to(alias):
                alias.copy_(copy)


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


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one device have the same dtype, shape and bits.

    nan equals itself, 0.0 is not -0.0; tensors without plain bytes are never called the same.
    """
    if a.dtype != b.dtype or a.shape != b.shape or a.layout is not b.layout:
        return False
    if a.layout is not torch.strided or a.is_quantized or a.is_nested:
        return False
    return torch.equal(_bits(a), _bits(b))


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
