"""The order of nn.Module.apply: children first, then the module itself."""

from __future__ import annotations

from torch import nn

from modscope.paths import join
from modscope_server.errors import LimitExceeded
from modscope_server.inspection.members import children
from modscope_server.inspection.walk import walk

__all__ = ["applied"]

_MOST_CALLS = 1_000_000


def applied(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of each call that root.apply(fn) makes of fn, wrapper prefixes left out.

    A module that two parents share is called twice, as apply does, so that random numbers are drawn in
    the same order. Raises LimitExceeded for more than a million calls.
    """
    stripped = {visit.raw_path: visit.path for visit in walk(root).visits}
    calls: list[tuple[str, nn.Module]] = []
    waiting: list[tuple[str, nn.Module, bool]] = [("", root, False)]
    while waiting:
        path, module, done = waiting.pop()
        if done:
            calls.append((stripped.get(path, path), module))
            continue
        waiting.append((path, module, True))
        if len(calls) + len(waiting) > _MOST_CALLS:
            raise LimitExceeded(
                f"shared modules make apply call its function more than {_MOST_CALLS:,} times",
                hint="reinitialize inside the training script",
            )
        below: dict[int, tuple[str, nn.Module, bool]] = {}
        for name, child in children(module):
            below.setdefault(id(child), (join(path, name), child, False))
        waiting.extend(reversed(below.values()))
    return calls
