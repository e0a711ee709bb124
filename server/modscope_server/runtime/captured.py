"""One value in the form that each subscriber wants, computed once for all of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import NamedTuple, TypeAlias

import torch

from modscope_server.errors import NotMaterialized
from modscope_server.inspection.host_reduction import plain_values
from modscope_server.inspection.row_reduction import FEW
from modscope_server.inspection.statistics import Reduction, reduce
from modscope_server.inspection.tensors import dtype_name, numel_of, shape_of, unreadable_reason
from modscope_server.runtime.cuda_copies import gathered
from modscope_server.runtime.drafts import DraftValue
from modscope_server.runtime.later import reduced_later
from modscope_server.runtime.parts import Unfit, copied, part_of

__all__ = ["Form", "captured", "plain_value_in", "value_in"]

_RECORDED = "being recorded into a CUDA graph: nothing is computed yet, and replays call no hooks"
_TRANSFORMED = "inside of a transformation of torch.func: it has no elements of its own"


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
    # Histograms first: statistics come with them.
    ordered = sorted(forms) if len(forms) > 1 else forms
    return {form: value_in(form, role, key, tensor, note) for form in ordered}


def value_in(form: Form, role: str, key: str, tensor: torch.Tensor | None, note: str = "") -> DraftValue:
    """The value in one form; without a tensor, `note` says why."""
    if tensor is None:
        return DraftValue(role, key, (), None, None, None, note)
    if type(tensor) is torch.Tensor:
        return plain_value_in(form, role, key, tensor)
    with torch._C.DisableTorchFunctionSubclass():
        return plain_value_in(form, role, key, tensor)


def plain_value_in(form: Form, role: str, key: str, tensor: torch.Tensor) -> DraftValue:
    """A value that is exactly a torch.Tensor, in one form."""
    payload, sample, index, dtype = form
    note = ""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return DraftValue(role, key, tuple(tensor.shape), dtype_name(tensor), None, None, _RECORDED)
    try:
        if payload == "stats" or payload == "histogram":
            reduction, copy = _reduced(tensor, payload == "histogram", sample, index), None
        else:
            reduction, note = None, unreadable_reason(tensor)
            copy = copied(tensor, index, dtype) if payload == "tensor" and not note else None
    except (NotMaterialized, Unfit) as error:
        reduction = copy = None
        note = unreadable_reason(tensor) or str(error)
    except RuntimeError:
        if not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise
        reduction, copy, note = None, None, _TRANSFORMED
    shape = shape_of(tensor) if note else tuple(tensor.shape)
    return DraftValue(role, key, shape, dtype_name(tensor), reduction, copy, note)


_Seen: TypeAlias = "tuple[Callable[[], torch.Tensor | None], int, dict[tuple[str, int], Reduction]]"


class _Last(threading.local):
    """What this thread has reduced last: the tensor, its version, and its reductions by index and sample."""

    def __init__(self) -> None:
        self.seen: tuple[Callable[[], torch.Tensor | None], int, dict[tuple[str, int], Reduction]] = (
            _nothing,
            0,
            {},
        )


def _nothing() -> None:
    return None


_LAST = _Last()


def _reduced(tensor: torch.Tensor, histogram: bool, sample: int, index: str) -> Reduction:
    """The reduction of a tensor, from the hook before where that saw the same one.

    A module often gives on what its last child gave, or takes what the one before gave. Whether a tensor is
    still as it was is told as autograd tells it, by its version; a change through `.data` in between is seen
    by neither.
    """
    if type(tensor) is not torch.Tensor or tensor.is_inference():
        return _fresh(tensor, histogram, sample, index)
    seen, seen_version, known = _LAST.seen
    version = tensor._version
    if seen_version != version or seen() is not tensor:
        known = {}
        _LAST.seen = weakref.ref(tensor), version, known
    reduction = known.get((index, sample))
    if reduction is None or (histogram and reduction.buckets is None):
        reduction = _fresh(tensor, histogram, sample, index)
        known[index, sample] = reduction
    elif not histogram and reduction.buckets is not None:
        return reduction._replace(buckets=None)
    return reduction


def _fresh(tensor: torch.Tensor, histogram: bool, sample: int, index: str) -> Reduction:
    if not (histogram or sample or index) and numel_of(tensor) <= FEW:
        values = plain_values(tensor)
        if values is not None and len(values) and values.itemsize == 4:
            return Reduction(len(values), False, reduced_later(values))
    part = part_of(tensor, index) if index else tensor
    reduction = reduce(part, histogram=histogram, sample=sample)
    return gathered(reduction) if tensor.is_cuda else reduction
