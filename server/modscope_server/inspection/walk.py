"""The walk over a model that every listing builds on: PyTorch's order, iterative, wrappers told."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from modscope.paths import join
from modscope_server.inspection.members import children, tensors
from modscope_server.inspection.wrappers import inner_name

__all__ = ["MAX_ALIASES", "MAX_ALIAS_VISITS", "Visit", "Walk", "walk"]

_new = tuple.__new__  # half the time of Visit(...), of which there are 100,000 in large models

MAX_ALIASES = 1_000
"""Most further paths that are told of one module; sharing within shared modules makes exponentially many."""
MAX_ALIAS_VISITS = 250_000
"""Most further paths that are told of all modules of a model together."""


class Visit(NamedTuple):
    """One path at which one module stands."""

    path: str
    """Wrapper prefixes left out."""
    raw_path: str
    module: nn.Module
    wrappers: tuple[str, ...]
    """Classes of the wrappers around it, outermost first."""
    children: int
    """Immediate children, each once."""
    first: bool
    """Whether named_modules lists the module at this path; otherwise it is a further path of it."""
    hidden: bool
    """Whether the module is a wrapper that is not listed."""


class Walk(NamedTuple):
    """All paths of all modules, in the order of named_modules(remove_duplicate=False)."""

    visits: list[Visit]
    parents: list[int]
    """Position of the visit above each visit; -1 for the root."""
    links: dict[int, list[nn.Module]]
    """Position of a first visit -> those of its children that were visited before."""
    stripped: bool
    """Whether wrapper prefixes are left out; False where two paths would become one."""


def walk(root: nn.Module) -> Walk:
    """Walks a model. A module that is shared is entered again for its further paths, within the limits."""
    result = _walk(root, strip=True)
    if any(visit.hidden for visit in result.visits) and _collides(result.visits):
        return _walk(root, strip=False)
    return result


def _walk(root: nn.Module, strip: bool) -> Walk:
    visits: list[Visit] = []
    parents: list[int] = []
    links: dict[int, list[nn.Module]] = {}
    seen: dict[int, int] = {}
    inners: dict[type, str] = {}
    further = 0
    stack: list[tuple[str, str, nn.Module, tuple[str, ...], int]] = [("", "", root, (), -1)]
    while stack:
        path, raw, module, wrappers, above = stack.pop()
        key = id(module)
        first = key not in seen
        if first:
            seen[key] = 0
        else:
            if visits[above].first:
                links.setdefault(above, []).append(module)
            if seen[key] >= MAX_ALIASES or further >= MAX_ALIAS_VISITS:
                continue
            seen[key] += 1
            further += 1
        position = len(visits)
        parents.append(above)
        below = [] if module.__dict__.get("_modules") == {} else children(module)
        if not below:
            visits.append(_new(Visit, (path, raw, module, wrappers, 0, first, False)))
            continue
        cls = type(module)
        if cls not in inners:
            inners[cls] = inner_name(cls) if strip else ""
        inner = inners[cls]
        hidden = bool(inner) and any(name == inner for name, _ in below)
        count = len({id(child) for _, child in below})
        visits.append(_new(Visit, (path, raw, module, wrappers, count, first, hidden)))
        if not first and _inside_itself(module, above, visits, parents):
            continue
        for name, child in reversed(below):
            child_raw = f"{raw}.{name}" if raw else name
            if hidden and name == inner:
                stack.append((path, child_raw, child, (*wrappers, type(module).__name__), position))
            elif path is raw:
                stack.append((child_raw, child_raw, child, (), position))
            else:
                stack.append((join(path, name), child_raw, child, (), position))
    return Walk(visits, parents, links, strip)


def _inside_itself(module: nn.Module, above: int, visits: list[Visit], parents: list[int]) -> bool:
    """Whether the way to a visit passes through the same module: a child that refers back to its parent."""
    while above >= 0:
        if visits[above].module is module:
            return True
        above = parents[above]
    return False


def _collides(visits: list[Visit]) -> bool:
    """Whether leaving the wrapper prefixes out gives one path to two things that PyTorch tells apart."""
    stripped: dict[str, int] = {}
    for visit in visits:
        things = [] if visit.hidden else [(visit.path, id(visit.module))]
        things += [(join(visit.path, name), id(t)) for name, t in tensors(visit.module, "_parameters")]
        things += [(join(visit.path, name), id(t)) for name, t in tensors(visit.module, "_buffers")]
        for path, key in things:
            if stripped.setdefault(path, key) != key:
                return True
    return False
