"""Memory for arrays that arrive in bulk, used again once they are gone.

The system hands out fresh memory page by page as it is touched, which can take longer than the
transfer that fills it. So a client that asks for a state_dict again and again, or watches whole tensors,
keeps the memory of the last ones, up to 1 GiB, for ten seconds, until the next or until it is closed.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from modscope.blocks import FreeBlocks, lent

if TYPE_CHECKING:
    from modscope.blocks import Block

__all__ = ["Memory"]

_MOST_KEPT = 1 << 30
_KEEP_SECONDS = 10.0


class Memory:
    """Blocks of bytes. A block is free once no array over it is left. Safe to use from several threads."""

    def __init__(self) -> None:
        self._kept = FreeBlocks()
        self._keeps = True
        # Of this kind, because it may be put into even while the same thread is putting or taking.
        self._returned: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._tidied = False

    @property
    def free(self) -> int:
        """Bytes that are kept and not in use."""
        return self._kept.bytes

    def take(self, sizes: Iterable[int]) -> list[Block]:
        """A block of each size, its bytes of any value.

        As much as the system has to give goes back to it first, where so much is free in other sizes.
        """
        import numpy

        self._start_tidying()
        wanted = list(sizes)
        found = [self._kept.take(size) for size in wanted]
        self._kept.give_way(sum(size for size, block in zip(wanted, found, strict=True) if block is None))
        return [
            lent(numpy.empty(size, numpy.uint8) if block is None else block, self._return)
            for size, block in zip(wanted, found, strict=True)
        ]

    def close(self) -> None:
        """Give all free blocks to the system, and from now on each one that becomes free."""
        self._keeps = False
        self._kept.clear()
        self._returned.put(False)

    def _start_tidying(self) -> None:
        """A thread that lets free blocks go when none has come back for a while; asleep until one does."""
        if not self._tidied and self._keeps:
            self._tidied = True
            weakref.finalize(self, self._returned.put, False).atexit = False
            thread = threading.Thread(
                target=_tidy, args=(self._kept, self._returned), name="modscope-memory", daemon=True
            )
            thread.start()

    def _return(self, block: Block) -> None:
        if self._keeps and self.free + block.nbytes <= _MOST_KEPT:
            self._kept.put(block)
            self._returned.put(True)


def _tidy(kept: FreeBlocks, returned: queue.SimpleQueue[bool]) -> None:
    while returned.get():
        with contextlib.suppress(queue.Empty):
            while True:
                if not returned.get(timeout=_KEEP_SECONDS):
                    return
        kept.clear()
