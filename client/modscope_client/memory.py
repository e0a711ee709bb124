"""Memory for arrays that arrive in bulk, used again once they are gone.

The system hands out fresh memory page by page as it is touched, which can take longer than the
transfer that fills it. So a client that asks for a state_dict again and again, or watches whole tensors,
keeps the memory of the last ones, up to 1 GiB, for ten seconds, until the next or until it is closed.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

    Block = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]

__all__ = ["Memory", "keep_message_blocks"]

_MOST_KEPT = 1 << 30
_KEEP_SECONDS = 10.0
_LARGER_THAN_MESSAGES = 8 << 20


@functools.cache
def keep_message_blocks() -> None:
    """Have malloc keep the memory of messages, for the hundreds that follow in a transfer.

    glibc gives a freed block of that size back to the system, to have it cleared page by page for the
    next message, until the process has once freed a larger one.
    """
    bytes(_LARGER_THAN_MESSAGES)


class Memory:
    """Blocks of bytes. A block is free once no array over it is left. Safe to use from several threads."""

    def __init__(self) -> None:
        # By size. Deques, because blocks come back whenever the garbage collector likes, in any thread.
        self._kept: dict[int, deque[Block]] = {}
        self._keeps = True
        # Of this kind, because it may be put into even while the same thread is putting or taking.
        self._returned: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._tidied = False

    @property
    def free(self) -> int:
        """Bytes that are kept and not in use."""
        return sum(size * len(blocks) for size, blocks in list(self._kept.items()))

    def take(self, sizes: Iterable[int]) -> list[Block]:
        """A block of each size, its bytes of any value.

        As much as the system has to give goes back to it first, where so much is free in other sizes.
        """
        import numpy

        self._start_tidying()
        wanted = list(sizes)
        found = [self._found(size) for size in wanted]
        self._make_way(sum(size for size, block in zip(wanted, found, strict=True) if block is None))
        return [
            self._lend(numpy.empty(size, numpy.uint8) if block is None else block)
            for size, block in zip(wanted, found, strict=True)
        ]

    def close(self) -> None:
        """Give all free blocks to the system, and from now on each one that becomes free."""
        self._keeps = False
        self._kept.clear()
        self._returned.put(False)

    def _found(self, size: int) -> Block | None:
        """A free block of that size, where there is one. A size of which none is left is forgotten."""
        blocks = self._kept.get(size)
        if blocks is None:
            return None
        try:
            return blocks.pop()
        except IndexError:
            return None
        finally:
            if not blocks:
                self._kept.pop(size, None)

    def _make_way(self, size: int) -> None:
        """Let go of so many bytes, or of all there are."""
        while size > 0 and (kept := next(iter(list(self._kept)), 0)):
            self._found(kept)
            size -= kept

    def _start_tidying(self) -> None:
        """A thread that lets free blocks go when none has come back for a while; asleep until one does."""
        if not self._tidied and self._keeps:
            self._tidied = True
            weakref.finalize(self, self._returned.put, False).atexit = False
            thread = threading.Thread(
                target=_tidy, args=(self._kept, self._returned), name="modscope-memory", daemon=True
            )
            thread.start()

    def _lend(self, block: Block) -> Block:
        import numpy

        # Through a memoryview, so that arrays over the loan hold the loan and not the block itself.
        loan = numpy.frombuffer(block.data, numpy.uint8)
        weakref.finalize(loan, self._return, block).atexit = False
        return loan

    def _return(self, block: Block) -> None:
        if self._keeps and self.free + block.nbytes <= _MOST_KEPT:
            self._kept.setdefault(block.nbytes, deque()).append(block)
            self._returned.put(True)


def _tidy(kept: dict[int, deque[Block]], returned: queue.SimpleQueue[bool]) -> None:
    while returned.get():
        with contextlib.suppress(queue.Empty):
            while True:
                if not returned.get(timeout=_KEEP_SECONDS):
                    return
        kept.clear()
