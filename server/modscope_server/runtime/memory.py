"""Host memory for what is staged: fresh from the system, or what the last read left a moment ago."""

from __future__ import annotations

import contextlib
import mmap
import threading

import torch

__all__ = ["HostMemory"]

_KEEP_SECONDS = 10.0
_LEAST_KEPT = 16 << 20


class HostMemory:
    """Lends blocks of bytes. The last one that came back is kept for ten seconds, for a next read.

    The system clears fresh memory before it hands it out, which can take longer than the copy into it.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._kept: torch.Tensor | None = None
        self._timer: threading.Timer | None = None

    def take(self, size: int) -> torch.Tensor:
        """At least `size` bytes and less than twice as many, of any value: uint8, 1-d, on the CPU."""
        kept = self._drop()
        if kept is not None and size <= kept.numel() < 2 * size:
            return kept
        del kept
        return _fresh(size)

    def give(self, memory: torch.Tensor) -> None:
        """Hand a block back. Nobody may look at it afterwards."""
        if memory.numel() < _LEAST_KEPT:
            return
        self._drop()
        timer = threading.Timer(_KEEP_SECONDS, self._drop)
        timer.daemon = True
        with contextlib.suppress(RuntimeError), self._mutex:
            timer.start()  # refused while the interpreter exits
            self._kept, self._timer = memory, timer

    def _drop(self) -> torch.Tensor | None:
        with self._mutex:
            kept, self._kept = self._kept, None
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return kept


def _fresh(size: int) -> torch.Tensor:
    """Memory of the system's, in huge pages where it has them: they are mapped in far fewer faults."""
    # Private, because what is shared (Python's default) gets huge pages on hardly any system.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)
