"""What a hook publishes, and what a reader in this process makes of it."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch

from modscope.tensor import TensorData
from modscope_server.inspection.records import HistogramRecord, SampleRecord, StatsRecord
from modscope_server.inspection.statistics import Reduction
from modscope_server.inspection.tensors import plain_data

__all__ = ["Draft", "DraftValue", "HookEvent", "HookValue", "Item", "event_of", "figures_of"]


class DraftValue(NamedTuple):
    """A value as a hook captured it: a reduction, or a copy; what is a tensor is still on its own device."""

    role: str
    key: str
    shape: tuple[int, ...] = ()
    dtype: str | None = None
    reduction: Reduction | None = None
    copy: torch.Tensor | TensorData | None = None
    note: str = ""


class _Fields(NamedTuple):
    step: int
    model: str
    path: str
    raw_path: str
    type: str
    hook: str
    call: int
    recompute: bool
    time: float
    """Unix seconds."""
    values: tuple[DraftValue, ...]


class Draft(_Fields):
    """A firing of a hook, as it is published: one for all subscribers that want the same form of it."""

    encoded: bytes | None = None
    """What all of them are sent, once the first of them has encoded it."""


Item: TypeAlias = Draft | bytes
"""What waits in queues: a draft, or what all subscribers are sent of it."""


class HookValue(NamedTuple):
    """A value in host memory."""

    role: str
    """input, output, grad_input, grad_output, parameter, gradient or metric."""
    key: str
    shape: tuple[int, ...]
    dtype: str | None
    stats: StatsRecord | None
    tensor: TensorData | None
    note: str
    histogram: HistogramRecord | None = None
    sample: SampleRecord | None = None


class HookEvent(NamedTuple):
    """A firing of a hook, as one subscriber sees it."""

    seq: int
    step: int
    model: str
    path: str
    raw_path: str
    type: str
    hook: str
    call: int
    recompute: bool
    time: float
    """Unix seconds."""
    values: tuple[HookValue, ...]
    dropped: int
    """Events that the subscription had lost when this one was taken."""


def event_of(sequence: int, draft: Item, dropped: int) -> HookEvent:
    """A draft with its values in host memory; where they lie on a device this waits for it."""
    assert isinstance(draft, Draft), "nothing is packed for who reads in this process"
    return HookEvent(sequence, *draft[:-1], tuple(map(_value, draft.values)), dropped)


def figures_of(
    reduction: Reduction,
) -> tuple[StatsRecord | None, HistogramRecord | None, SampleRecord | None, str]:
    """Statistics, histogram and sample, waited for where they are on a device, and why there are none."""
    try:
        stats = reduction.resolve()
        if reduction.buckets is None and reduction.population is None:
            return stats, None, None, ""
        histogram = None if reduction.buckets is None else reduction.histogram()
        sample = None if reduction.population is None else reduction.sample()
    except RuntimeError as error:
        return None, None, None, f"its statistics are lost: {error}"
    return stats, histogram, sample, ""


def _value(draft: DraftValue) -> HookValue:
    role, key, shape, dtype, reduction, copy, note = draft
    tensor = plain_data(copy) if isinstance(copy, torch.Tensor) else copy
    if reduction is None:
        return HookValue(role, key, shape, dtype, None, tensor, note)
    stats, histogram, sample, loss = figures_of(reduction)
    return HookValue(role, key, shape, dtype, stats, tensor, note or loss, histogram, sample)
