"""Events -> the messages of a watch's stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch

from modscope.tensor import CHUNK_BYTES, TensorData, chunks
from modscope.wire import Encoded, Frame
from modscope_server.inspection.tensors import byte_view, plain_data
from modscope_server.runtime.budget import copies
from modscope_server.runtime.bus import Batch
from modscope_server.runtime.from_device import copy_from_cuda
from modscope_server.services.event_bytes import entries

__all__ = ["messages"]

_NOTHING = Encoded(b"")


def messages(batch: Batch) -> Iterator[Frame[Encoded]]:
    """The events of a batch, some hundred in a message, each with the bytes of its tensors behind it.

    Runs are taken out of the batch, so that a tensor is free as soon as its last chunk is.
    """
    parts: list[bytes] = []
    tensors: deque[memoryview] = deque()
    size = 0
    while batch.runs:
        run = batch.runs.popleft()
        events = entries(run, batch.dropped)
        parts += events
        size += sum(map(len, events))
        if run.block.size:
            tensors.extend(map(_bytes_of, copies(run.block.drafts)))
            size += run.block.size
        if size >= CHUNK_BYTES or not batch.runs:
            header = Encoded(b"".join(parts))
            for chunk in _pieces(tensors):
                yield Frame(header, chunk)
                header = _NOTHING
            if header is not _NOTHING:
                yield Frame(header)
            parts, size = [], 0


def _pieces(tensors: deque[memoryview]) -> Iterator[memoryview | bytes]:
    """The bytes in chunks: a large tensor in several, without a copy, small ones together in one."""
    while tensors:
        together = [tensors.popleft()]
        size = together[0].nbytes
        while tensors and size + tensors[0].nbytes <= CHUNK_BYTES:
            together.append(tensors.popleft())
            size += together[-1].nbytes
        if len(together) == 1:
            yield from chunks(together.pop())
        else:
            yield b"".join(together)


def _bytes_of(copy: torch.Tensor | TensorData) -> memoryview:
    """The elements of a hook's own copy: its memory, where it lies there as it is sent."""
    if isinstance(copy, TensorData):
        return memoryview(copy.data)
    if copy.is_cuda:
        host = torch.empty(copy.nbytes, dtype=torch.uint8)
        for _ in copy_from_cuda(host, copy):
            pass
        return byte_view(host)
    data = plain_data(copy)
    assert data is not None, "no unreadable tensor is copied"
    return memoryview(data.data)
