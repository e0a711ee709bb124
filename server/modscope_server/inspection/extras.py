"""The other parts of a loop that attach was given, such as a scheduler: their state, taken and put back."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

__all__ = ["Stateful", "left_out", "stateful"]


class Stateful(NamedTuple):
    """How an extra gives its state and takes it back."""

    take: Callable[[], Any]
    put: Callable[[Any], object]


def stateful(extra: Any) -> Stateful | None:
    """How to take and put back the state of an extra; None where there is no way.

    It is its state_dict and load_state_dict; generators of torch, numpy and Python have ways of their own.
    """
    take, put = getattr(extra, "state_dict", None), getattr(extra, "load_state_dict", None)
    if callable(take) and callable(put):
        return Stateful(take, put)
    if isinstance(extra, torch.Generator):
        return Stateful(extra.get_state, extra.set_state)
    if isinstance(extra, random.Random):
        return Stateful(extra.getstate, extra.setstate)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None and isinstance(extra, numpy_random.Generator):
        bits = extra.bit_generator
        return Stateful(lambda: bits.state, lambda state: setattr(bits, "state", state))
    if numpy_random is not None and isinstance(extra, numpy_random.RandomState):
        return Stateful(extra.get_state, extra.set_state)
    return None


def left_out(extra: Any) -> str:
    """What its state_dict leaves out by design, so that whoever restores it hears of that; "" for nothing."""
    functions = [
        value
        for name in ("lr_lambdas", "_scale_fn_custom")
        for value in _listed(getattr(extra, name, None))
        if isinstance(value, types.FunctionType)
    ]
    if not functions:
        return ""
    what = f"{len(functions)} functions, which {type(extra).__name__}.state_dict leaves out"
    return f"{what}: they stay as they are"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
