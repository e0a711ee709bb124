"""Memory that is used again: free blocks by size, and loans that tell when nobody can see them any more.

The system clears fresh memory page by page as it is touched, which takes longer than what is done with it.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

    Block = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]

__all__ = ["FreeBlocks", "keep_message_blocks", "lent"]

_LARGER_THAN_MESSAGES = 8 << 20


class FreeBlocks:
    """Blocks that nobody uses. Safe to use from several threads, and from the garbage collector: no lock."""

    def __init__(self) -> None:
        self._by_size: dict[int, deque[Block]] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return sum(size * len(blocks) for size, blocks in list(self._by_size.items()))

    def put(self, block: Block) -> None:
        """One more."""
        self._by_size.setdefault(block.nbytes, deque()).append(block)

    def take(self, size: int) -> Block | None:
        """One of that size, where there is one. A size of which none is left is forgotten."""
        blocks = self._by_size.get(size)
        if blocks is None:
            return None
        try:
            return blocks.pop()
        except IndexError:
            return None
        finally:
            if not blocks:
                self._by_size.pop(size, None)

    def give_way(self, size: int) -> None:
        """Let so many bytes go back to the system, or all there are.

        First goes what is no larger than what is left to go, of the size of which most is free.
        """
        while size > 0 and (sizes := {each: len(blocks) for each, blocks in list(self._by_size.items())}):
            fitting = [each for each in sizes if each <= size]
            gone = max(fitting, key=lambda each: each * sizes[each]) if fitting else min(sizes)
            self.take(gone)
            size -= gone

    def clear(self) -> None:
        """Let all go back to the system."""
        self._by_size.clear()


def lent(block: Block, give: Callable[[Block], object]) -> Block:
    """An array over a block; `give` gets the block once neither it nor any view of it is left."""
    import numpy

    # Through a memoryview, so that what is made over the loan holds the loan and not the block itself.
    loan = numpy.frombuffer(block.data, numpy.uint8)
    weakref.finalize(loan, give, block).atexit = False
    return loan


@functools.cache
def keep_message_blocks() -> None:
    """Have malloc keep the memory of messages, for the hundreds that follow.

    glibc gives a freed block of that size back to the system, to have it cleared page by page for the next
    message, until the process has once freed a larger one.
    """
    bytes(_LARGER_THAN_MESSAGES)
