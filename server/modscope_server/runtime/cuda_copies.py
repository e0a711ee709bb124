"""Copies from CUDA devices, queued behind what they copy. Nothing here waits but `wait`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from modscope_server.inspection.statistics import Reduction
from modscope_server.runtime.boundaries import Boundaries
from modscope_server.runtime.gathering import Copy, Gatherer

__all__ = ["GATHERER", "StepEnds", "gathered"]


class _Cuda:
    """Copies on the stream of what is copied, and so after it; the device's memory is reused after them."""

    def stream(self, tensor: torch.Tensor) -> Any:
        return torch.cuda.current_stream(tensor.device)

    def begin(self, stream: Any, tensors: Sequence[torch.Tensor]) -> Copy:
        return _CudaCopy(stream, tensors)


class _CudaCopy:
    def __init__(self, stream: Any, tensors: Sequence[torch.Tensor]) -> None:
        # This may be any thread: the stream's device is made current with it, and the one before again after.
        with torch.cuda.stream(stream), torch.no_grad():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            self._host = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
            self._host.copy_(flat, non_blocking=True)
            # blocking: who waits sleeps, instead of asking again and again.
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._done.record(stream)

    def wait(self) -> torch.Tensor:
        self._done.synchronize()
        return self._host


GATHERER = Gatherer(_Cuda())
"""That of this process: hooks of any server leave their rows there."""


def gathered(reduction: Reduction) -> Reduction:
    """A reduction whose numbers, where they are on a CUDA device, come to the host with others."""
    parts, buckets = reduction.parts, reduction.buckets
    if not isinstance(parts, torch.Tensor) or not parts.is_cuda:
        return reduction
    if isinstance(buckets, torch.Tensor):
        buckets = GATHERER.add(buckets)
    return reduction._replace(parts=GATHERER.add(parts), buckets=buckets)


class StepEnds:
    """Has what has gathered copied at the end of each iteration, while anybody watches."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._boundaries: Boundaries | None = None
        self._watches = 0

    def follow(self, boundaries: Boundaries) -> None:
        """Learn of the ends of iterations there."""
        if torch.cuda.is_available():
            self._boundaries = boundaries

    def count(self, change: int) -> None:
        """One watch more, or one fewer."""
        with self._mutex:
            before, self._watches = self._watches, self._watches + change
            if self._boundaries is not None and bool(before) != bool(self._watches):
                if self._watches:
                    self._boundaries.add_follower(GATHERER)
                else:
                    self._boundaries.remove_follower(GATHERER)
