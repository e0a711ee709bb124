"""Which modules were given to torch.compile, as far as they, and the compiler, tell."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from modscope_server.inspection.counts import reachable
from modscope_server.inspection.lookup import module_at
from modscope_server.inspection.wrappers import inner_name

__all__ = ["anything_compiled", "is_compiled", "something_was_compiled"]

_WRAPPER = "_orig_mod"


def something_was_compiled() -> bool:
    """Whether the compiler has compiled any function in this process. Costs nothing."""
    utils = sys.modules.get("torch._dynamo.utils")
    counters: Any = getattr(utils, "counters", {})
    return any(
        counters.get(group, {}).get(key) for group, key in (("frames", "total"), ("stats", "unique_graphs"))
    )


def anything_compiled(roots: Iterable[nn.Module]) -> bool:
    """Whether any module of these was given to torch.compile, or any function was compiled."""
    return something_was_compiled() or any(_given(module) for root in roots for module in reachable(root))


def is_compiled(root: nn.Module, path: str) -> bool:
    """Whether the module at this path, or one that it is inside of, was given to torch.compile."""
    names = path.split(".") if path else []
    for depth in range(len(names) + 1):
        place = module_at(root, ".".join(names[:depth]))
        if place is not None and (_given(place.module) or _wrapped(place.wrappers)):
            return True
    return False


def _given(module: nn.Module) -> bool:
    return module.__dict__.get("_compiled_call_impl") is not None or inner_name(type(module)) == _WRAPPER


def _wrapped(wrappers: Sequence[str]) -> bool:
    return "OptimizedModule" in wrappers
