"""Memory for large copies that hooks make, used again once they are gone.

The system clears fresh memory page by page as it is touched, which takes several times as long as the copy,
and a hook makes training wait for it.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import Any, TypeAlias

import numpy
import torch

from modscope.blocks import FreeBlocks, keep_message_blocks, lent
from modscope.tensor import TensorData
from modscope_server.inspection.tensors import dtype_name, nbytes, snapshot, to_data

__all__ = ["COPY_MEMORY", "CopyMemory"]

_Block: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.uint8]]"

_LEAST = 1 << 20
"""Bytes below which malloc does as well."""
_LEAST_OWN = 1 << 16
"""Bytes below which `bytes` do."""
_MOST_FREE = 256 << 20
_SPARE = 8 << 20
"""Free bytes of other sizes that stay where a size is asked for of which none is free."""
_KEEP_SECONDS = 10.0


class CopyMemory:
    """Blocks of bytes. A block is free once no view of it is left.

    Free blocks are kept while anybody watches, and for a while after that: the next watch may come at once.
    They add little to the most that was in use at once: where none of them fits, others give way first.
    Safe to use from several threads.

    Args:
        keep: how long that while is, in seconds.
    """

    def __init__(self, keep: float = _KEEP_SECONDS) -> None:
        self._keep = keep
        self._mutex = threading.Lock()
        self._watches = 0
        self._timer: threading.Timer | None = None
        # Blocks come back whenever the last reference to one goes, in any thread: no lock is taken then.
        self._free = FreeBlocks()

    def count(self, change: int) -> None:
        """One watch more, or one fewer."""
        keep_message_blocks()
        with self._mutex:
            self._watches += change
            timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            if not self._watches and self.free:
                timer = threading.Timer(self._keep, self._let_go)
                timer.daemon = True
                with contextlib.suppress(RuntimeError):
                    timer.start()  # refused while the interpreter exits
                    self._timer = timer

    @property
    def free(self) -> int:
        """Bytes that are kept and not in use."""
        return self._free.bytes

    def copied(self, tensor: torch.Tensor) -> TensorData:
        """A copy of a readable tensor on the CPU, row-major.

        It is no tensor of torch: a few of those that stay while others come and go tear malloc's memory into
        pieces, and a training step no longer finds the places in which it was before.
        """
        size = nbytes(tensor)
        if size < _LEAST_OWN:
            return to_data(tensor)
        place = numpy.empty(size, numpy.uint8) if size < _LEAST else lent(self._taken(size), self._give)
        snapshot(tensor, torch.from_numpy(place))
        return TensorData(dtype_name(tensor), tuple(tensor.shape), place.data)

    def _taken(self, size: int) -> _Block:
        block = self._free.take(size)
        if block is None:
            self._free.give_way(min(size, self.free - _SPARE))
            block = _fresh(size)
        return block

    def _give(self, block: _Block) -> None:
        is_expected = self._watches or self._timer is not None
        if is_expected and self.free + block.nbytes <= _MOST_FREE:
            self._free.put(block)

    def _let_go(self) -> None:
        with self._mutex:
            if not self._watches:
                self._timer = None
                self._free.clear()


def _fresh(size: int) -> _Block:
    """Memory from the system, to which it goes back as a whole: malloc's would be torn into other sizes."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return numpy.frombuffer(memory, numpy.uint8)


COPY_MEMORY = CopyMemory()
"""That of this process."""
