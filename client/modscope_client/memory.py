"""Memory for arrays that arrive in bulk, used again once they are gone.

The system hands out fresh memory page by page as it is touched, which can take longer than the
transfer that fills it. So a client that asks for a state_dict again and again keeps the memory of the
last one, up to 1 GiB, until the next or until it is closed.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

    Block = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]

__all__ = ["Memory", "keep_message_blocks"]

_MOST_KEPT = 1 << 30
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
        # A deque, because blocks come back whenever the garbage collector likes, in any thread.
        self._free: deque[Block] = deque()
        self._keeps = True

    def take(self, sizes: Iterable[int]) -> list[Block]:
        """A block of each size, its bytes of any value. Free blocks of other sizes go back to the system."""
        import numpy

        free: dict[int, list[Block]] = {}
        while self._free:
            block = self._free.popleft()
            free.setdefault(block.nbytes, []).append(block)
        wanted = list(sizes)
        found = [free[size].pop() if free.get(size) else None for size in wanted]
        free.clear()
        return [
            self._lend(numpy.empty(size, numpy.uint8) if block is None else block)
            for size, block in zip(wanted, found, strict=True)
        ]

    def close(self) -> None:
        """Give all free blocks to the system, and from now on each one that becomes free."""
        self._keeps = False
        self._free.clear()

    def _lend(self, block: Block) -> Block:
        import numpy

        # Through a memoryview, so that arrays over the loan hold the loan and not the block itself.
        loan = numpy.frombuffer(block.data, numpy.uint8)
        weakref.finalize(loan, self._return, block).atexit = False
        return loan

    def _return(self, block: Block) -> None:
        if self._keeps and sum(kept.nbytes for kept in self._free) + block.nbytes <= _MOST_KEPT:
            self._free.append(block)
