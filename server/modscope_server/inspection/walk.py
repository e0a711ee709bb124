"""The walk over a model that every listing builds on: PyTorch's order, iterative, wrappers told."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import nn

from modscope.paths import join
from modscope_server.inspection.members import children, tensors
from modscope_server.inspection.wrappers import inner_name

__all__ = ["MAX_ALIASES", "MAX_ALIAS_VISITS", "Onlooker", "Visit", "Walk", "walk"]

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
    """All paths of all modules, in the order of named_modules(remove_duplicate=False).

    A visit is a position in the columns, since the garbage collector of the training process would go
    through 100,000 tuples, and through the whole model with them.
    """

    paths: list[str]
    raw_paths: list[str]
    modules: list[nn.Module]
    children: list[int]
    parents: list[int]
    """Position of the visit above each visit; -1 for the root."""
    wrappers: dict[int, tuple[str, ...]]
    """Those around a module, where there are any."""
    hidden: set[int]
    """Wrappers that are not listed."""
    further: set[int]
    """Visits of modules that were visited before."""
    stripped: bool
    """Whether wrapper prefixes are left out; False where two paths would become one."""

    @property
    def visits(self) -> list[Visit]:
        """The visits, made anew."""
        columns = zip(self.paths, self.raw_paths, self.modules, self.children, strict=True)
        wrappers, hidden, further = self.wrappers, self.hidden, self.further
        return [
            _new(
                Visit,
                (path, raw, module, wrappers.get(at, ()), count, at not in further, at in hidden),
            )
            for at, (path, raw, module, count) in enumerate(columns)
        ]


class Onlooker(Protocol):
    """Reads of each module what it needs, as the walk comes to it: later on memory would be waited for."""

    def visit(self, module: nn.Module, first: bool) -> None:
        """The module stands at the next position."""

    def link(self, position: int, module: nn.Module) -> None:
        """Of the module there, on its first visit, a child is one that was visited before."""


def walk(root: nn.Module, onlooker: Onlooker | None = None) -> Walk:
    """Walks a model. A module that is shared is entered again for its further paths, within the limits."""
    walked = _walk(root, onlooker)
    if walked.hidden and _collides(walked.visits):
        return walked._replace(paths=walked.raw_paths, wrappers={}, hidden=set(), stripped=False)
    return walked


def _walk(root: nn.Module, onlooker: Onlooker | None) -> Walk:
    walked = Walk([], [], [], [], [], {}, set(), set(), True)
    paths, raw_paths, modules, counts, parents, around, hidden, further, _ = walked
    seen: dict[int, int] = {}
    inners: dict[type, str] = {}
    stack: list[tuple[str, str, nn.Module, tuple[str, ...], int]] = [("", "", root, (), -1)]
    while stack:
        path, raw, module, wrappers, above = stack.pop()
        position = len(paths)
        key = id(module)
        first = key not in seen
        if first:
            seen[key] = 0
        else:
            if onlooker is not None and above not in further:
                onlooker.link(above, module)
            if seen[key] >= MAX_ALIASES or len(further) >= MAX_ALIAS_VISITS:
                continue
            seen[key] += 1
            further.add(position)
        paths.append(path)
        raw_paths.append(raw)
        modules.append(module)
        parents.append(above)
        if wrappers:
            around[position] = wrappers
        if onlooker is not None:
            onlooker.visit(module, first)
        below = [] if module.__dict__.get("_modules") == {} else children(module)
        if not below:
            counts.append(0)
            continue
        counts.append(len({id(child) for _, child in below}))
        cls = type(module)
        if cls not in inners:
            inners[cls] = inner_name(cls)
        inner = inners[cls]
        wraps = bool(inner) and any(name == inner for name, _ in below)
        if wraps:
            hidden.add(position)
        if not first and _inside_itself(module, above, walked):
            continue
        prefix = f"{raw}." if raw else ""
        for name, child in reversed(below):
            child_raw = prefix + name
            if wraps and name == inner:
                stack.append((path, child_raw, child, (*wrappers, cls.__name__), position))
            elif path is raw:
                stack.append((child_raw, child_raw, child, (), position))
            else:
                stack.append((join(path, name), child_raw, child, (), position))
    return walked


def _inside_itself(module: nn.Module, above: int, walked: Walk) -> bool:
    """Whether the way to a visit passes through the same module: a child that refers back to its parent."""
    while above >= 0:
        if walked.modules[above] is module:
            return True
        above = walked.parents[above]
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
