"""Bytes of a CUDA tensor to host memory, in pieces through pinned buffers.

A copy from the device into pageable memory waits for the driver's own small buffers; into pinned memory it
runs at the speed of the bus. Pinning whole staging blocks would take seconds and lock that memory, so two
buffers take turns: while one is emptied on the host, the other is filled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["copy_from_cuda"]

_PIECE = 16 << 20


def copy_from_cuda(target: torch.Tensor, source: torch.Tensor) -> Iterator[int]:
    """Copy all bytes of a dense CUDA tensor, row-major, into `target`; yields how far it is.

    The copies run on a stream of their own, after all that the device was given to do before, whatever
    stream that was on. `target`: uint8, 1-d, on the CPU, of the tensor's bytes.
    """
    device = source.device
    with torch.cuda.device(device):
        # The training thread may work on a stream that this thread does not know of.
        torch.cuda.synchronize(device)
        flat = source.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        buffers = [torch.empty(min(_PIECE, len(flat)), dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        filled = [torch.cuda.Event() for _ in buffers]  # type: ignore[no-untyped-call]
        starts = range(0, len(flat), _PIECE)

        def fill(number: int) -> None:
            piece = flat[starts[number] : starts[number] + _PIECE]
            with torch.cuda.stream(stream):
                buffers[number % 2][: len(piece)].copy_(piece, non_blocking=True)
                filled[number % 2].record(stream)

        for number in range(min(2, len(starts))):
            fill(number)
        for number, start in enumerate(starts):
            end = min(start + _PIECE, len(flat))
            filled[number % 2].synchronize()
            target[start:end].copy_(buffers[number % 2][: end - start])
            if number + 2 < len(starts):
                fill(number + 2)
            yield end
        flat.record_stream(stream)
