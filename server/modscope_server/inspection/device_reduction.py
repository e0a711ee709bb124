"""Reductions where the tensor lives, without asking the device for any value."""

from __future__ import annotations

import math

import torch

from modscope_server.inspection.histogram import BITS, CODES, MANTISSA

__all__ = ["counted", "masked"]

_BLOCK = 1 << 22
"""Elements counted at a time; bounds the temporaries, which are of float64."""


def masked(columns: torch.Tensor) -> torch.Tensor:
    """Reduce a chunk of shape (n, 1), or (n, 2) for complex, to a row there: the fields of Part."""
    wide = _wide(columns)
    nan = columns.isnan().any(1)
    finite = columns.isfinite().all(1)
    count = finite.sum()
    kept = torch.where(finite[:, None], columns, 0)
    scale = torch.ones((), dtype=wide, device=columns.device)
    if columns.dtype is wide:
        largest = kept.abs().amax()
        scale = torch.where(largest > 0, largest, 1)
        kept = kept / scale
    mean = kept.sum(0, dtype=wide) / count
    centre = mean.to(kept.dtype)
    off = torch.where(finite[:, None], kept - centre, 0)
    dev = torch.linalg.vector_norm(off, dtype=wide).square() - count * (mean - centre).square().sum()
    mean = mean * scale
    real = columns.shape[1] == 1
    row = (
        count,
        mean[0],
        torch.zeros_like(scale) if real else mean[1],
        dev.clamp(min=0).sqrt() * scale,
        torch.linalg.vector_norm(kept, dtype=wide) * scale,
        torch.where(finite, columns[:, 0], math.inf).amin(),
        torch.where(finite, columns[:, 0], -math.inf).amax(),
        (columns == 0).all(1).sum(),
        nan.sum(),
        columns.shape[0] - count - nan.sum(),
    )
    return torch.stack([value.to(wide) for value in row])


def counted(chunks: list[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Count real elements by bucket: centre, unit and scale of the buckets, then the counts by code.

    `rows` has what `masked` made of the chunks. Where no element is finite, or all are equal, it means
    nothing.
    """
    centre, unit, scale = _buckets(rows)
    whole = torch.int32 if rows.dtype is torch.float32 else torch.int64
    shift = MANTISSA[rows.dtype.itemsize] - BITS
    first = unit.view(whole) >> shift
    counts = torch.zeros(CODES + 1, dtype=torch.int64, device=rows.device)
    one = torch.ones((), dtype=torch.int64, device=rows.device)
    for chunk in chunks:
        for block in torch.split(chunk, _BLOCK):
            distance = block.to(rows.dtype) / scale - centre
            bucket = ((distance.abs() + unit).view(whole) >> shift) - first
            bucket = bucket.clamp(0, CODES // 2 - 1).long()
            code = torch.where(distance < 0, CODES - 1 - bucket, bucket)
            code = torch.where(block.isfinite(), code, CODES)
            counts.scatter_add_(0, code, one.expand_as(code))
    return torch.cat((torch.stack((centre, unit, scale)), counts[:CODES].to(rows.dtype)))


def _buckets(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centre, unit and scale for all chunks together, as histogram.buckets_of has them."""
    finite = rows[:, 0]
    has_any = finite > 0
    low = torch.where(has_any, rows[:, 5], math.inf).amin()
    high = torch.where(has_any, rows[:, 6], -math.inf).amax()
    scale = torch.maximum(-low, high)
    means, devs = (torch.where(has_any, rows[:, column] / scale, 0) for column in (1, 3))
    count = finite.sum()
    mean = (finite * means).sum() / count
    spread = devs.square().sum() + (finite * (means - mean).square()).sum()
    std = torch.maximum(spread.sqrt(), (high / scale - low / scale) / math.sqrt(2)) / count.sqrt()
    unit = torch.exp2(torch.frexp(std).exponent.to(rows.dtype) - 4)
    return mean, unit, scale


def _wide(t: torch.Tensor) -> torch.dtype:
    return torch.float32 if t.device.type == "mps" else torch.float64
