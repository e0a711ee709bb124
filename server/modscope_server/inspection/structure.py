"""What a model is made of: modules, children, repr; exactly as PyTorch lists them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from modscope.paths import join
from modscope_server.inspection.counts import Census, take_census
from modscope_server.inspection.lookup import Place, locate_module
from modscope_server.inspection.members import children
from modscope_server.inspection.records import Located, ModuleRecord
from modscope_server.inspection.typenames import is_instance, qualified_name
from modscope_server.inspection.walk import Visit, Walk, walk
from modscope_server.inspection.wrappers import inner_of

__all__ = [
    "MAX_REPR_BYTES",
    "Located",
    "child_records",
    "find_module",
    "is_instance",
    "iterate_module_records",
    "located_modules",
    "module_record",
    "module_records",
    "module_text",
]

MAX_REPR_BYTES = 64 * 1024
"""Most bytes (UTF-8) of a module's repr."""

_CUT = "\n... (cut at 64 KiB)"


def located_modules(root: nn.Module) -> list[Located]:
    """The modules in named_modules order, each once; wrappers are left out."""
    return [
        Located(visit.path, visit.raw_path, visit.module, visit.wrappers)
        for visit in walk(root).visits
        if visit.first and not visit.hidden
    ]


def find_module(root: nn.Module, path: str) -> nn.Module:
    """The module at a path: stripped or raw, its first path or a further one. Raises UnknownPath."""
    return locate_module(root, path).module


def module_records(
    root: nn.Module, under: str | None = None, depth: int | None = None, wanted: set[int] | None = None
) -> list[ModuleRecord]:
    """The modules in named_modules order, each once; wrappers are left out.

    `under` lists the module at that path and what is below it, at most `depth` levels deep, as the
    module's own named_modules does. `wanted` holds the identities of the modules to list. Raises
    UnknownPath.
    """
    if not under and depth is None:
        return list(_records(root, wanted))
    place = locate_module(root, under or "")
    below = [visit for visit in walk(place.outer).visits if visit.first and not visit.hidden]
    modules = {id(visit.module) for visit in below}
    known = _by_identity(root, modules if wanted is None else modules & wanted)
    return [
        _placed(known[id(visit.module)], _below(place, visit))
        for visit in below
        if id(visit.module) in known and (depth is None or _levels(visit.path) <= depth)
    ]


def iterate_module_records(root: nn.Module) -> Iterator[ModuleRecord]:
    """All of `module_records`; the walk is made at once, each record when it is taken."""
    return _records(root)


def module_record(root: nn.Module, path: str) -> ModuleRecord:
    """The module at a path, under its first path. Raises UnknownPath."""
    module = locate_module(root, path).module
    return next(_records(root, {id(module)}))


def child_records(root: nn.Module, path: str) -> list[ModuleRecord]:
    """The immediate children in named_children order, each once, below the path that was asked for.

    Raises UnknownPath.
    """
    place = locate_module(root, path)
    slots = _slots(place, walk(root).stripped)
    known = _by_identity(root, {id(slot.module) for slot in slots})
    return [_placed(known[id(slot.module)], slot) for slot in slots if id(slot.module) in known]


def module_text(root: nn.Module, path: str) -> str:
    """repr of what PyTorch has at the path, wrappers included, cut to 64 KiB. Raises UnknownPath alone."""
    place = locate_module(root, path)
    module = place.outer if path == place.path else place.module
    try:
        text = repr(module)
    except Exception as error:
        return f"<{type(module).__name__}: repr raised {type(error).__name__}: {_message(error)}>"
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= MAX_REPR_BYTES:
        return encoded.decode()
    return encoded[: MAX_REPR_BYTES - len(_CUT)].decode(errors="ignore") + _CUT


def _message(error: Exception) -> str:
    try:
        return str(error)[:200].encode(errors="backslashreplace").decode()
    except Exception:
        return ""


def _by_identity(root: nn.Module, wanted: set[int]) -> dict[int, ModuleRecord]:
    walked, census = take_census(root)
    positions = _listed(walked, wanted)
    identities = (id(walked.modules[position]) for position in positions)
    return dict(zip(identities, _records_at(positions, walked, census), strict=True))


def _below(place: Place, visit: Visit) -> Place:
    """Where a visit of a walk that began at the place stands in the whole model."""
    raw = join(place.outer_raw_path, visit.raw_path) if visit.raw_path else place.outer_raw_path
    path = join(place.path, visit.path) if visit.path else place.path
    return Place(path, raw, visit.module, visit.wrappers, visit.module, raw)


def _levels(path: str) -> int:
    return path.count(".") + 1 if path else 0


def _records(root: nn.Module, wanted: set[int] | None = None) -> Iterator[ModuleRecord]:
    """Records of all modules, or of those with the wanted identities.

    The walk is made at once, each record when it is taken.
    """
    walked, census = take_census(root)
    return _records_at(_listed(walked, wanted), walked, census)


def _listed(walked: Walk, wanted: set[int] | None = None) -> list[int]:
    """Positions of the modules that a listing shows, or of those with the wanted identities."""
    unlisted = walked.hidden | walked.further
    listed = [position for position in range(len(walked.paths)) if position not in unlisted]
    if wanted is None:
        return listed
    return [position for position in listed if id(walked.modules[position]) in wanted]


def _records_at(positions: Iterable[int], walked: Walk, census: Census) -> Iterator[ModuleRecord]:
    """The record of each position, made when it is taken; no module is touched again where it need not be."""
    paths, raw_paths, modules, children, parents, around, hidden, further, _ = walked
    elements, trainable = census.elements, census.trainable
    others: dict[int, list[str]] = {}
    for position in sorted(further - hidden):
        others.setdefault(id(modules[position]), []).append(paths[position])
    names: dict[type, tuple[str, str]] = {}
    for position in positions:
        path, cls, training = paths[position], census.types[position], census.training[position]
        named = names.get(cls)
        if named is None:
            named = names[cls] = (cls.__name__, qualified_name(cls))
        count, wrappers = children[position], around.get(position, ())
        top = position
        for _ in wrappers:
            top = parents[top]
            count += children[top] - 1
        aliases = others.get(id(modules[position])) if others else None
        fields = (
            path,
            path.rpartition(".")[2],
            named[0],
            named[1],
            training is True or _training(modules[position], training),
            count,
            elements[top],
            trainable[top],
            tuple(dict.fromkeys(alias for alias in aliases if alias != path)) if aliases else (),
            raw_paths[position],
            wrappers,
        )
        # Half the time of ModuleRecord(...), of which there are 100,000 in large models.
        yield tuple.__new__(ModuleRecord, fields)


def _training(module: nn.Module, own: object) -> bool:
    """The module's flag; `own` is what it has of its own, None where it has nothing."""
    if own is not None:
        return bool(own)
    try:
        return bool(module.training)
    except Exception:
        return False


def _slots(place: Place, stripped: bool) -> list[Place]:
    """Where the children stand, each once; those of a wrapper stand beside those of what it wraps."""
    if not stripped:
        return _own_slots(place, place.module, place.raw_path)
    slots: list[Place] = []
    layer, raw = place.outer, place.outer_raw_path
    inner = inner_of(layer)
    after: list[Place] = []
    while inner is not None:
        names = [name for name, _ in children(layer)]
        others = [slot for slot in _own_slots(place, layer, raw) if slot.module is not inner[1]]
        before = names.index(inner[0])
        slots += others[:before]
        after = others[before:] + after
        layer, raw = inner[1], join(raw, inner[0])
        inner = inner_of(layer)
    slots += _own_slots(place, layer, raw) + after
    return [_unwrapped(slot) for slot in slots]


def _own_slots(place: Place, module: nn.Module, raw_path: str) -> list[Place]:
    slots: dict[int, Place] = {}
    for name, child in children(module):
        raw = join(raw_path, name)
        slots.setdefault(id(child), Place(join(place.path, name), raw, child, (), child, raw))
    return list(slots.values())


def _unwrapped(place: Place) -> Place:
    inner = inner_of(place.module)
    while inner is not None:
        wrappers = (*place.wrappers, type(place.module).__name__)
        place = place._replace(raw_path=join(place.raw_path, inner[0]), module=inner[1], wrappers=wrappers)
        inner = inner_of(place.module)
    return place


def _placed(record: ModuleRecord, slot: Place) -> ModuleRecord:
    """A module's record as seen at one of its paths."""
    if record.path == slot.path:
        return record
    others = tuple(path for path in (record.path, *record.aliases) if path != slot.path)
    name = slot.path.rpartition(".")[2]
    return record._replace(
        path=slot.path, name=name, raw_path=slot.raw_path, wrappers=slot.wrappers, aliases=others
    )
