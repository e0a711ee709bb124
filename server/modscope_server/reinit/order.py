"""The order of nn.Module.apply: children first, then the module itself."""

from __future__ import annotations

from torch import nn

from modscope.paths import join
from modscope_server.inspection.members import children
from modscope_server.inspection.walk import walk

__all__ = ["applied"]


def applied(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of each call that root.apply(fn) makes of fn, wrapper prefixes left out.

    A module that several parents share comes once, where apply comes to it first.
    """
    stripped = {visit.raw_path: visit.path for visit in walk(root).visits}
    calls: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module, bool]] = [("", root, False)]
    while waiting:
        path, module, done = waiting.pop()
        if done:
            calls.append((stripped.get(path, path), module))
            continue
        if id(module) in seen:
            continue
        seen.add(id(module))
        waiting.append((path, module, True))
        waiting.extend(reversed([(join(path, name), child, False) for name, child in children(module)]))
    return calls
