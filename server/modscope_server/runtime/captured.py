"""One value in the form that each subscriber wants, computed once for all of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import torch

from modscope_server.inspection.statistics import Reduction, reduce
from modscope_server.inspection.tensors import dtype_name, unreadable_reason
from modscope_server.runtime.bus import DraftValue

__all__ = ["Form", "captured"]


class Form(NamedTuple):
    """What a subscriber wants of a value."""

    payload: str
    sample: int = 0
    """The most elements that statistics look at; 0 means all."""
    index: str = ""  # type: ignore[assignment]  # tuple.index, which nobody needs here
    """Which part of the tensor, as inspection.slices reads it; empty for all."""
    dtype: str = ""
    """Tensor payload: what to cast to; empty for its own."""


def captured(
    role: str, key: str, tensor: torch.Tensor | None, forms: AbstractSet[Form], note: str = ""
) -> dict[Form, DraftValue]:
    """The value in each of the forms; without a tensor, `note` says why."""
    if tensor is None:
        return {form: DraftValue(role, key, note=note) for form in forms}
    shape, dtype = tuple(tensor.shape), dtype_name(tensor)
    unreadable = unreadable_reason(tensor)
    if unreadable:
        return {form: DraftValue(role, key, shape, dtype, note=unreadable) for form in forms}
    found = {}
    # Histograms first: statistics come with them.
    for form in sorted(forms) if len(forms) > 1 else forms:
        payload, sample = form.payload, form.sample
        reduction = copy = None
        if payload == "tensor":
            copy = tensor.detach().clone()
        elif payload != "none":
            reduction = _reduced(tensor, payload == "histogram", sample)
        found[form] = DraftValue(role, key, shape, dtype, reduction, copy)
    return found


class _Last(threading.local):
    """What this thread has reduced last."""

    tensor: weakref.ref[torch.Tensor] | None = None
    version = 0
    sample = 0
    histogram = False
    reduction: Reduction | None = None


_LAST = _Last()


def _reduced(tensor: torch.Tensor, histogram: bool, sample: int) -> Reduction:
    """The reduction of a tensor, from the hook before where that saw the same one.

    A module often gives on what its last child gave, or takes what the one before gave. Whether a tensor is
    still as it was is told as autograd tells it, by its version; a change through `.data` in between is seen
    by neither.
    """
    if tensor.is_inference():
        return reduce(tensor, histogram=histogram, sample=sample)
    last, version = _LAST, tensor._version
    is_known = last.tensor is not None and last.tensor() is tensor and last.version == version
    if is_known and last.sample == sample and (last.histogram or not histogram):
        assert last.reduction is not None
        return last.reduction if histogram or not last.histogram else last.reduction._replace(buckets=None)
    reduction = reduce(tensor, histogram=histogram, sample=sample)
    last.tensor, last.version = weakref.ref(tensor), version
    last.sample, last.histogram, last.reduction = sample, histogram, reduction
    return reduction
