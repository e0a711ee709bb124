"""From a path that a client sent to the module or tensor there, without walking the whole model.

A path may be PyTorch's own or the one without wrapper prefixes, may mix the two, and may go through
any of the names of a shared module. Where it has several readings the walk decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from modscope.paths import join
from modscope_server.inspection.members import Kind, child, children, member, non_persistent, tensors
from modscope_server.inspection.records import LocatedTensor
from modscope_server.inspection.suggestions import unknown_module, unknown_tensor
from modscope_server.inspection.walk import Walk, walk
from modscope_server.inspection.wrappers import inner_name, inner_of

__all__ = ["Place", "find_tensor", "locate_module", "module_at", "tensor_at"]

_KINDS: tuple[Kind, ...] = ("_parameters", "_buffers")


class Place(NamedTuple):
    """A module and the way on which a path reached it."""

    path: str
    """Wrapper prefixes left out; through the names that the path used."""
    raw_path: str
    module: nn.Module
    wrappers: tuple[str, ...]
    outer: nn.Module
    """The outermost wrapper around it; itself where there is none."""
    outer_raw_path: str


class _State(NamedTuple):
    """A module on the way, and what is left of the path."""

    place: Place
    rest: str | None
    """None where nothing is left."""


def locate_module(root: nn.Module, path: str) -> Place:
    """The module at a path. Raises UnknownPath, with near paths in its hint."""
    place = module_at(root, path)
    if place is None:
        raise unknown_module(root, path)
    return place


def find_tensor(root: nn.Module, path: str) -> LocatedTensor:
    """The parameter, or else the buffer, at a path; its aliases are not looked up.

    Takes stripped, raw and tied names. Raises UnknownPath; for the name of a parametrized parameter
    the hint names the tensors that hold it.
    """
    located = tensor_at(root, path)
    if located is None:
        raise unknown_tensor(root, path)
    return located


def module_at(root: nn.Module, path: str) -> Place | None:
    """As `locate_module`; None where there is no such module."""
    straight = _straight(root, path)
    if straight is not None:
        return Place(path, path, straight, (), straight, path)
    places = [state.place for state in _states(root, path) if state.rest is None]
    if not places:
        return None
    place = places[0]
    if len({id(other.module) for other in places}) == 1 and place.path == place.raw_path:
        return place
    if not walk(root).stripped:
        place = next((other for other in places if other.raw_path == path), place)
        raw = place.raw_path
        return Place(raw, raw, place.module, (), place.module, raw)
    places = [other for other in places if inner_of(other.module) is None]
    return next((other for other in places if other.path == path), places[0])


def tensor_at(root: nn.Module, path: str) -> LocatedTensor | None:
    """As `find_tensor`; None where there is no such tensor."""
    above, _, name = path.rpartition(".")
    owner = _straight(root, above)
    if owner is not None:
        for kind in _KINDS:
            tensor = member(owner, kind, name)
            if tensor is not None:
                return _located(tensor, kind, name, path, path, owner, above)
    found = list(_tensors(root, path))
    if not found:
        return None
    if len({id(located.tensor) for located in found}) > 1:
        named = _named(walk(root), path)
        found = [located for located in found if id(located.tensor) in named] or found
    return _canonical(root, found[0], path)


def _straight(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a path on whose way no wrapper stands; None where there is none or a wrapper is met."""
    module = root
    if inner_name(type(module)):
        return None
    for name in path.split(".") if path else ():
        below = child(module, name)
        if below is None or inner_name(type(below)):
            return None
        module = below
    return module


def _states(root: nn.Module, path: str) -> Iterator[_State]:
    """Every module on every reading of the path, readings without wrapper prefixes first."""
    stack = [_State(Place("", "", root, (), root, ""), path or None)]
    while stack:
        state = stack.pop()
        yield state
        place, rest = state
        inner = inner_of(place.module)
        if rest is not None:
            for name, left in _first_names(place.module, rest):
                below = child(place.module, name)
                if below is None:
                    continue
                raw = join(place.raw_path, name)
                if inner is not None and name == inner[0]:
                    stack.append(_State(_inside(place, raw, below), left))
                else:
                    step = join(place.path, name)
                    stack.append(_State(Place(step, raw, below, (), below, raw), left))
        if inner is not None:
            raw = join(place.raw_path, inner[0])
            stack.append(_State(_inside(place, raw, inner[1]), rest))


def _inside(place: Place, raw_path: str, inner: nn.Module) -> Place:
    wrappers = (*place.wrappers, type(place.module).__name__)
    return Place(place.path, raw_path, inner, wrappers, place.outer, place.outer_raw_path)


def _first_names(module: nn.Module, rest: str) -> Iterator[tuple[str, str | None]]:
    """Names that the rest of a path may begin with, and what is left behind each; setattr lets dots in."""
    name, dot, left = rest.partition(".")
    yield name, left if dot else None
    if dot:
        for other, _ in children(module):
            if "." in other and rest.startswith(other):
                if len(rest) == len(other):
                    yield other, None
                elif rest[len(other)] == ".":
                    yield other, rest[len(other) + 1 :]


def _tensors(root: nn.Module, path: str) -> Iterator[LocatedTensor]:
    for place, rest in _states(root, path):
        if rest is None:
            continue
        for kind in _KINDS:
            tensor = member(place.module, kind, rest)
            if tensor is not None:
                full, raw = join(place.path, rest), join(place.raw_path, rest)
                yield _located(tensor, kind, rest, full, raw, place.module, place.path)


def _located(
    tensor: torch.Tensor, kind: Kind, name: str, path: str, raw_path: str, owner: nn.Module, owner_path: str
) -> LocatedTensor:
    persistent = name not in non_persistent(owner) if kind == "_buffers" else None
    return LocatedTensor(path, raw_path, name, tensor, owner, owner_path, persistent)


def _named(walked: Walk, path: str) -> set[int]:
    """Identities of the tensors that a listing shows at that path."""
    return {
        id(tensor)
        for visit in walked.visits
        for kind in _KINDS
        for name, tensor in tensors(visit.module, kind)
        if path.endswith(name) and join(visit.path, name) == path
    }


def _canonical(root: nn.Module, located: LocatedTensor, asked: str) -> LocatedTensor:
    """The same tensor under a path that means it alone: raw where the stripped one has several readings."""
    if located.path == asked or located.path == located.raw_path:
        return located
    same = {id(other.tensor) for other in _tensors(root, located.path)}
    if same == {id(located.tensor)}:
        return located
    above = located.raw_path.removesuffix(located.name).removesuffix(".")
    return LocatedTensor(
        located.raw_path,
        located.raw_path,
        located.name,
        located.tensor,
        located.owner,
        above,
        located.persistent,
    )
