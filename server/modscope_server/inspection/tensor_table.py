"""Tensors copied to host memory at one moment: what is shared is copied once, and is shared again later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from modscope_server.inspection.tensors import dtype_name, dtype_named, nbytes, snapshot

__all__ = ["Collector", "Row", "Table", "Thaw"]


class Row(NamedTuple):
    """A tensor of the table."""

    block: int
    """Position of the block of memory that holds its elements."""
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """In elements of its dtype, from the block's beginning."""
    device: str
    """Where it lived."""
    shared: bool
    """Whether other rows lie in the same block."""


@dataclass(frozen=True, slots=True)
class Table:
    """Copies of tensors: rows over blocks of bytes."""

    rows: tuple[Row, ...]
    blocks: tuple[torch.Tensor, ...]
    """Each uint8, one-dimensional, on the CPU; never written to."""
    names: tuple[str, ...]
    """What each block was called first, such as "model/w1.weight"; no two are the same."""

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.numel() for block in self.blocks)

    def view(self, index: int) -> torch.Tensor:
        """A row on the CPU, over the table's own memory: not to be written to."""
        row = self.rows[index]
        return _over(self.blocks[row.block], row)


class Collector:
    """Takes live tensors in, then copies them all.

    A tensor that comes twice, by the same object or another view of the same elements, is one row. Views
    that overlap in one storage are copied with the whole of it, so that they are views of one again.
    """

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._names: list[str] = []
        self._known: dict[tuple[object, ...], int] = {}
        self._storages: dict[tuple[object, ...], list[int]] = {}

    def add(self, tensor: torch.Tensor, name: str) -> int:
        """The row of a tensor, which must be readable. It stays alive until it is copied."""
        tensor = tensor.detach()
        place = _place(tensor)
        key = (
            *place,
            tensor.data_ptr(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
            tensor.is_conj(),
            tensor.is_neg(),
        )
        if key in self._known and tensor.numel():
            return self._known[key]
        index = self._known[key] = len(self._tensors)
        self._tensors.append(tensor)
        self._names.append(name)
        if tensor.numel():
            self._storages.setdefault(place, []).append(index)
        return index

    @property
    def nbytes(self) -> int:
        """Bytes that the copies will take."""
        whole = self._whole()
        alone = sum(nbytes(tensor) for index, tensor in enumerate(self._tensors) if index not in whole)
        return alone + sum(dict(whole.values()).values())

    def copy(self) -> Table:
        """Copy all of them."""
        whole = self._whole()
        rows: list[Row] = []
        blocks: list[torch.Tensor] = []
        names: dict[str, None] = {}
        at: dict[tuple[object, ...], int] = {}
        for index, tensor in enumerate(self._tensors):
            shared = index in whole
            place = whole[index][0] if shared else (index,)
            if place not in at:
                at[place] = len(blocks)
                blocks.append(_bytes_of_storage(tensor) if shared else snapshot(_dense(tensor)))
                names[_unused(self._names[index], names)] = None
            shape = tuple(tensor.shape)
            stride = tensor.stride() if shared else _dense_stride(tensor)
            offset = int(tensor.storage_offset()) if shared else 0
            device = str(tensor.device)
            rows.append(Row(at[place], dtype_name(tensor), shape, stride, offset, device, shared))
        return Table(tuple(rows), tuple(blocks), tuple(names))

    def _whole(self) -> dict[int, tuple[tuple[object, ...], int]]:
        """The rows that are copied with their whole storage: its place and its bytes."""
        found = {}
        for place, indices in self._storages.items():
            if len(indices) < 2:
                continue
            tensors = [self._tensors[index] for index in indices]
            size = tensors[0].untyped_storage().nbytes()
            plain = not any(tensor.is_conj() or tensor.is_neg() for tensor in tensors)
            if plain and sum(map(nbytes, tensors)) > size:
                found.update(dict.fromkeys(indices, (place, size)))
        return found


class Thaw:
    """Makes tensors of a table anew: a row that is asked for twice is one tensor."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._made: dict[tuple[int, str], torch.Tensor] = {}
        self._blocks: dict[tuple[int, str], torch.Tensor] = {}

    def known(self, index: int, tensor: torch.Tensor) -> None:
        """From now on this live tensor stands for the row."""
        self._made[(index, str(tensor.device))] = tensor

    def device(self, index: int) -> str:
        """Where a row lived."""
        return self._table.rows[index].device

    def tensor(self, index: int, device: str | torch.device | None = None) -> torch.Tensor:
        """A row as a new tensor, where it lived or on the given device."""
        row = self._table.rows[index]
        place = row.device if device is None else str(device)
        made = self._made.get((index, place))
        if made is None:
            block = self._blocks.get((row.block, place))
            if block is None:
                block = self._table.blocks[row.block].to(place, copy=True)
                if row.shared:
                    self._blocks[(row.block, place)] = block
            made = self._made[(index, place)] = _over(block, row)
        return made


def _over(block: torch.Tensor, row: Row) -> torch.Tensor:
    dtype = dtype_named(row.dtype)
    if not block.numel():
        return torch.empty(row.shape, dtype=torch.uint8, device=block.device).to(dtype)
    whole = block[: block.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
    return whole.as_strided(row.shape, row.stride, row.offset)


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _bytes_of_storage(tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage()
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
    return snapshot(whole)


def _order(tensor: torch.Tensor) -> list[int] | None:
    """The dimensions from the one of the largest step to that of the smallest; None for gaps or overlaps."""
    if tensor.is_contiguous():
        return list(range(tensor.ndim))
    stride = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda dim: (-stride[dim], dim))
    return order if tensor.permute(order).is_contiguous() else None


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its dimensions as they lie in memory, so that its bytes are copied in that order."""
    order = None if tensor.is_contiguous() else _order(tensor)
    return tensor if order is None else tensor.permute(order)


def _dense_stride(tensor: torch.Tensor) -> tuple[int, ...]:
    """Strides of a copy: those of the tensor where it is dense, else row-major ones."""
    if _order(tensor) is not None:
        return tensor.stride()
    stride, step = [], 1
    for size in reversed(tensor.shape):
        stride.append(step)
        step *= max(1, size)
    return tuple(reversed(stride))


def _unused(name: str, taken: dict[str, None]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}#{number}"
    return found
