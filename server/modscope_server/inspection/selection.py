"""From a glob and a type to modules, parameters and buffers.

An existing path wins over its reading as a glob. A glob is compared with every path of a shared module
or tied tensor; PyTorch's raw paths count only where nothing else matches, since a prefix such as
"module.*" would otherwise select a whole wrapped model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import nn

from modscope import paths
from modscope_server.errors import BadGlobError, NoMatch
from modscope_server.inspection.counts import reachable
from modscope_server.inspection.lookup import module_at, tensor_at
from modscope_server.inspection.members import tensors
from modscope_server.inspection.parameters import located_buffers, located_parameters
from modscope_server.inspection.records import Located, LocatedTensor, ModuleRecord
from modscope_server.inspection.structure import iterate_module_records, module_records
from modscope_server.inspection.typenames import type_matcher
from modscope_server.inspection.walk import walk

__all__ = [
    "Located",
    "LocatedTensor",
    "no_parameter",
    "select_located_buffers",
    "select_located_parameters",
    "select_module_records",
    "select_modules",
    "some_modules",
]

Item = TypeVar("Item")


def select_modules(root: nn.Module, glob: str = "*", type: str = "") -> list[Located]:
    """The modules that match, in named_modules order; an empty type admits all, "" is the root alone.

    `type` is the name of a class, by isinstance. Raises BadGlobError.
    """
    located: dict[int, Located] = {}
    named: dict[int, list[str]] = {}
    for visit in walk(root).visits:
        if not visit.hidden:
            key = id(visit.module)
            named.setdefault(key, []).append(visit.path)
            if visit.first:
                located[key] = Located(visit.path, visit.raw_path, visit.module, visit.wrappers)
    chosen = list(located.values())
    exact = module_at(root, glob)
    if exact is not None:
        chosen = [one for one in chosen if one.module is exact.module]
    elif glob != "*":
        chosen = _matching(chosen, glob, lambda one: named[id(one.module)], lambda one: one.raw_path)
    matches = type_matcher(type)
    return [one for one in chosen if matches(one.module)]


def some_modules(root: nn.Module, model: str, glob: str, type: str) -> list[Located]:
    """As `select_modules`, of the model of that name. Raises NoMatch, too, where nothing matches."""
    chosen = select_modules(root, glob, type)
    if not chosen:
        kind = f" of type {type!r}" if type else ""
        raise NoMatch(
            f"no module of {model!r} matches {glob!r}{kind}",
            hint="list them: `modscope modules`",
            field="glob",
        )
    return chosen


def no_parameter(glob: str, type: str = "") -> NoMatch:
    """The refusal of a selection of parameters that is empty."""
    owner = f" in a module of type {type!r}" if type else ""
    return NoMatch(
        f"no parameter matches {glob or '*'!r}{owner}", hint="list them: `modscope params`", field="glob"
    )


def select_module_records(
    root: nn.Module, glob: str = "*", type: str = "", under: str | None = None, depth: int | None = None
) -> Iterable[ModuleRecord]:
    """Records of the modules that match; `under` and `depth` as in `module_records`.

    Those of a whole model are made as they are taken, so that the first can be sent early.

    Raises BadGlobError and UnknownPath.
    """
    if not type and glob == "*" and module_at(root, glob) is None:
        whole = not under and depth is None
        return iterate_module_records(root) if whole else module_records(root, under, depth)
    chosen = {id(one.module) for one in select_modules(root, glob, type)}
    return module_records(root, under, depth, chosen)


def select_located_parameters(root: nn.Module, glob: str = "", type: str = "") -> list[LocatedTensor]:
    """The parameters that match, in named_parameters order; an empty glob or type admits all.

    A pattern that is the path of a module selects all under it. `type` is the name of a class of the
    module that owns the parameter, by isinstance. Raises BadGlobError.
    """
    return _chosen(root, located_parameters(root), glob, type)


def select_located_buffers(root: nn.Module, glob: str = "", type: str = "") -> list[LocatedTensor]:
    """The buffers that match, in named_buffers order; as `select_located_parameters`."""
    return _chosen(root, located_buffers(root), glob, type)


def _chosen(root: nn.Module, located: list[LocatedTensor], glob: str, type: str) -> list[LocatedTensor]:
    if glob:
        exact = _exact(root, located, glob)
        if exact is not None:
            located = exact
        elif glob != "*":
            located = _matching(located, glob, lambda one: (one.path, *one.aliases), lambda one: one.raw_path)
    matches = type_matcher(type)
    return [one for one in located if matches(one.owner)]


def _exact(root: nn.Module, located: list[LocatedTensor], path: str) -> list[LocatedTensor] | None:
    """The tensors that an existing path means; None where the path means none."""
    tensor = tensor_at(root, path)
    if tensor is not None:
        return [one for one in located if one.tensor is tensor.tensor]
    place = module_at(root, path)
    if place is None:
        return None
    below = {
        id(t)
        for module in reachable(place.outer)
        for kind in ("_parameters", "_buffers")
        for _, t in tensors(module, kind)
    }
    return [one for one in located if id(one.tensor) in below]


def _matching(
    items: list[Item], glob: str, named: Callable[[Item], Iterable[str]], raw: Callable[[Item], str]
) -> list[Item]:
    """The items one of whose paths matches the glob; only where none does, those whose raw path does."""
    full = _compiled(glob).fullmatch
    found = [item for item in items if any(full(path) for path in named(item))]
    return found or [item for item in items if full(raw(item))]


def _compiled(glob: str) -> re.Pattern[str]:
    try:
        return paths.compile_glob(glob)
    except paths.BadGlob as error:
        raise BadGlobError(
            str(error),
            hint="* matches any run of characters, ? one, [...] a set, {a,b} either; a backslash escapes",
            field="glob",
        ) from None
