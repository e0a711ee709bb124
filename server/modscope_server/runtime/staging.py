"""Host memory between the model and the wire: copied at a safe point, sent afterwards.

Training waits for the copy alone. Beside an idle model the copy is cut into pieces and overlaps
with sending; at a step boundary it runs whole, into memory whose pages were touched before.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy
import torch

from modscope.tensor import CHUNK_BYTES, TensorData
from modscope_server.errors import LimitExceeded, NotMaterialized
from modscope_server.inspection.tensors import byte_view, dtype_name, nbytes, snapshot, unreadable_reason
from modscope_server.runtime.from_device import copy_from_cuda
from modscope_server.runtime.memory import HostMemory
from modscope_server.runtime.safepoint import Caller, Cancelled, Kind, SafePoint

__all__ = ["Budget", "Chunk", "StagedEntry", "StagedRead"]

_ALIGNMENT = 64
_PIECE = 8 << 20


class Budget:
    """Bytes of staging memory that may be in use at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.memory = HostMemory()
        self._mutex = threading.Lock()
        self._copying = 0
        self._quiet = threading.Condition()

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Around a copy on a thread of its own."""
        with self._quiet:
            self._copying += 1
        try:
            yield
        finally:
            with self._quiet:
                self._copying -= 1
                self._quiet.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until no copy runs; whether that is so.

        A thread that the exiting interpreter ends within torch's own code takes the process down with it.
        """
        with self._quiet:
            return self._quiet.wait_for(lambda: not self._copying, seconds)

    def take(self, size: int) -> None:
        """Reserve `size` bytes. Raises LimitExceeded where they are not to be had."""
        with self._mutex:
            if self.used + size > self.limit:
                raise LimitExceeded(
                    f"{size:,} bytes of staging memory are needed, "
                    f"{self.limit - self.used:,} of {self.limit:,} are free",
                    hint="raise limits.staging_bytes in attach, or ask for less at once",
                )
            self.used += size

    def give(self, size: int) -> None:
        """Return `size` reserved bytes."""
        with self._mutex:
            self.used -= size


class StagedEntry(NamedTuple):
    """A tensor in staging memory."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    """Bytes."""


class Chunk(NamedTuple):
    """A piece of a staged tensor."""

    entry: int
    """Position of the tensor among the entries."""
    begins: bool
    """Whether the piece is the first of its tensor."""
    data: memoryview
    """At most 1 MiB; empty for a tensor without elements."""


class StagedRead:
    """Tensors of one step, copied out of a model.

    Args:
        safepoint: where the copy is made.
        collect: gives the tensors; called at the safe point.
        budget: the staging memory.

    `start` returns when the entries are known; `chunks` gives the bytes as they are copied;
    `close` frees the memory.
    """

    def __init__(
        self, safepoint: SafePoint, collect: Callable[[], Sequence[tuple[str, torch.Tensor]]], budget: Budget
    ) -> None:
        self.entries: list[StagedEntry] = []
        self.step = 0
        self._safepoint = safepoint
        self._collect = collect
        self._budget = budget
        self._reserved = 0
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._copied = 0
        self._known = False
        self._error: BaseException | None = None
        self._progress = threading.Condition()
        self._abandoned = False

    def start(
        self,
        *,
        kind: Kind = "read",
        caller: Caller | None = None,
        timeout: float | None = None,
        cancelled: Cancelled | None = None,
        ahead: bool = True,
    ) -> None:
        """Begin to copy and return when it is known what comes. Raises as SafePoint.run does.

        ahead: `collect` may be called beside the loop too, for memory to be there before the copy. Not where
        it looks at gradients: a backward changes those without the GIL, and a look at them then may crash.
        """
        if ahead and not self._safepoint.idle:
            self._prepare(_layout(self._safepoint.peek(self._collect).value), touch=True)
        options = {"kind": kind, "caller": caller, "timeout": timeout, "cancelled": cancelled}
        threading.Thread(target=self._run, args=(options,), name="modscope-stage", daemon=True).start()
        with self._progress:
            self._progress.wait_for(lambda: self._known or self._error is not None)
        if self._error is not None:
            self.close()
            raise self._error

    def chunks(self) -> Iterator[Chunk]:
        """The bytes of all entries, in order, each as soon as it is copied."""
        view = byte_view(self._memory)
        for index, entry in enumerate(self.entries):
            if not entry.size:
                yield Chunk(index, True, view[:0])
            for start in range(0, entry.size, CHUNK_BYTES):
                end = entry.offset + min(start + CHUNK_BYTES, entry.size)
                self._await(end)
                yield Chunk(index, start == 0, view[entry.offset + start : end])

    def data(self, index: int) -> TensorData:
        """One entry whole, once it is copied; its bytes are there until `close`."""
        entry = self.entries[index]
        self._await(entry.offset + entry.size)
        view = byte_view(self._memory)[entry.offset : entry.offset + entry.size]
        return TensorData(entry.dtype, entry.shape, view)

    def close(self) -> None:
        """Free the memory; a copy that still runs ends first, with the piece that it is at. Idempotent."""
        with self._progress:
            self._abandoned = True
            if self._error is not None or not self._known or self._copied >= self._end:
                self._free()

    @property
    def _end(self) -> int:
        return self.entries[-1].offset + self.entries[-1].size if self.entries else 0

    def _free(self) -> None:
        memory, self._memory = self._memory, torch.empty(0, dtype=torch.uint8)
        self._budget.memory.give(memory)
        self._budget.give(self._reserved)
        self._reserved = 0

    def _await(self, end: int) -> None:
        if self._copied < end:
            with self._progress:
                self._progress.wait_for(lambda: self._copied >= end or self._error is not None)
            if self._error is not None:
                raise self._error

    def _run(self, options: dict[str, object]) -> None:
        own = threading.get_ident()
        with self._budget.copying():
            try:
                self._safepoint.run(lambda: self._copy(beside=threading.get_ident() == own), **options)  # type: ignore[arg-type]
            except BaseException as error:
                self._error = error
            with self._progress:
                self._progress.notify_all()
                if self._abandoned:
                    self._free()

    def _copy(self, *, beside: bool) -> None:
        """Copy everything, at the safe point. `beside`: the training thread does not wait for it."""
        tensors = self._collect()
        entries = _layout(tensors)
        self._prepare(entries, touch=False)
        self.step = self._safepoint.step_count
        self.entries = entries
        if beside:
            self._tell(0)
        for entry, (_, tensor) in zip(entries, tensors, strict=True):
            target = self._memory[entry.offset : entry.offset + entry.size]
            for end in _copy_into(target, tensor, _PIECE if beside else entry.size):
                if beside:
                    self._tell(entry.offset + end)
                    if self._abandoned:
                        return
        self._tell(self._end)

    def _tell(self, copied: int) -> None:
        with self._progress:
            self._known = True
            self._copied = copied
            self._progress.notify_all()

    def _prepare(self, entries: list[StagedEntry], *, touch: bool) -> None:
        """Have memory for the entries; `touch` brings its pages in now rather than during the copy."""
        size = entries[-1].offset + entries[-1].size if entries else 0
        if size <= self._memory.numel():
            return
        self._budget.take(size - self._reserved)
        self._reserved = size
        self._memory = self._budget.memory.take(size)
        if touch:
            self._memory[:: mmap.PAGESIZE].zero_()


def _layout(tensors: Sequence[tuple[str, torch.Tensor]]) -> list[StagedEntry]:
    """Where each tensor goes. Raises NotMaterialized for one that cannot be read, naming it."""
    entries, offset = [], 0
    for key, tensor in tensors:
        reason = unreadable_reason(tensor)
        if reason:
            raise NotMaterialized(
                f"{key!r} cannot be read: it is {reason}",
                hint="see `modscope params` for what can",
                field="path",
            )
        size = nbytes(tensor)
        entries.append(StagedEntry(key, dtype_name(tensor), tuple(tensor.shape), offset, size))
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT
    return entries


def _copy_into(target: torch.Tensor, tensor: torch.Tensor, piece: int) -> Iterator[int]:
    """Copy a tensor's bytes into `target`, with the GIL free; yields how far it is.

    CPU pieces are copied by numpy, on this thread alone: torch would put all cores to work, and beside a
    transfer they have other things to do.
    """
    if tensor.device.type == "cuda" and target.numel():
        yield from copy_from_cuda(target, tensor)
        return
    plain = (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
        and target.numel() > piece
    )
    if not plain:
        snapshot(tensor, out=target)
        yield target.numel()
        return
    bytes_here = target.numpy()
    bytes_there = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    for start in range(0, target.numel(), piece):
        end = min(start + piece, target.numel())
        numpy.copyto(bytes_here[start:end], bytes_there[start:end])
        yield end
