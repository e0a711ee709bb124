"""Structured values, what a model takes and gives: the tensors apart from the containers around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from modscope_server.errors import BadRequest

__all__ = [
    "ListNode",
    "MappingNode",
    "Node",
    "NoneNode",
    "Opaque",
    "Scalar",
    "TensorRef",
    "TupleNode",
    "flatten",
    "map_tensors",
    "named_tensors",
    "unflatten",
]

_MAX_DEPTH = 64
_REPR_LENGTH = 200
_INT64 = 2**63


@dataclasses.dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor, by its position among the tensors that go beside the structure."""

    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class NoneNode:
    """Python's None."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scalar:
    """A truth value, a whole number of 64 bits, a real number, or text."""

    value: bool | int | float | str


@dataclasses.dataclass(frozen=True, slots=True)
class ListNode:
    """A list."""

    items: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TupleNode:
    """A tuple, a named tuple, or a torch.Size."""

    items: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class MappingNode:
    """A mapping or a dataclass."""

    type: str
    """Class of a dataclass or of a mapping that is no plain dict; empty for a dict."""
    entries: tuple[tuple[str, Node], ...]
    """Key and value in the container's own order; a key that is no text is given as its text."""


@dataclasses.dataclass(frozen=True, slots=True)
class Opaque:
    """Something else: what it is, for a person to read."""

    type: str
    """Qualified name of its class."""
    repr: str
    """Its repr, cut to 200 characters."""


Node: TypeAlias = TensorRef | NoneNode | Scalar | ListNode | TupleNode | MappingNode | Opaque


def flatten(value: object) -> tuple[Node, list[torch.Tensor]]:
    """The structure of a value, and its tensors in order; a tensor that occurs twice is given once.

    What holds itself, or is nested more than 64 deep, becomes Opaque at that place.
    """
    tensors: list[torch.Tensor] = []
    return _node(value, (), tensors, {}), tensors


def _node(
    value: object, above: tuple[int, ...], tensors: list[torch.Tensor], positions: dict[int, int]
) -> Node:
    # Neither here nor below a closure: one that calls itself is a cycle, and would keep the tensors until
    # the next garbage collection.
    if isinstance(value, torch.Tensor):
        position = positions.setdefault(id(value), len(tensors))
        if position == len(tensors):
            tensors.append(value)
        return TensorRef(position)
    scalar = _scalar(value)
    if scalar is not None:
        return scalar
    items = _items(value)
    if items is None or len(above) >= _MAX_DEPTH or id(value) in above:
        return _opaque(value)
    within = (*above, id(value))
    nodes = tuple((key, _node(item, within, tensors, positions)) for key, item in items)
    if isinstance(value, (list, tuple)):
        return (ListNode if isinstance(value, list) else TupleNode)(tuple(item for _, item in nodes))
    return MappingNode("" if type(value) is dict else type(value).__name__, nodes)


def unflatten(structure: Node, tensors: Sequence[torch.Tensor]) -> Any:
    """The value that a structure and its tensors make; a mapping becomes a dict.

    Raises BadRequest for a tensor that did not come and for what has no form here (Opaque).
    """
    if isinstance(structure, TensorRef):
        if not 0 <= structure.index < len(tensors):
            raise BadRequest(
                f"the structure names tensor {structure.index}, but {len(tensors)} tensors came with it",
                hint="number the tensors from 0 in the order in which they are sent",
                field="value",
            )
        return tensors[structure.index]
    if isinstance(structure, Scalar):
        return structure.value
    if isinstance(structure, ListNode):
        return [unflatten(item, tensors) for item in structure.items]
    if isinstance(structure, TupleNode):
        return tuple(unflatten(item, tensors) for item in structure.items)
    if isinstance(structure, MappingNode):
        return {key: unflatten(item, tensors) for key, item in structure.entries}
    if isinstance(structure, NoneNode):
        return None
    raise BadRequest(
        f"a {structure.type} cannot be rebuilt from {structure.repr!r}",
        hint="send tensors, numbers, text, None, and lists, tuples and dicts of them",
        field="value",
    )


def named_tensors(value: object) -> list[tuple[str, torch.Tensor | None]]:
    """The tensors and Nones of a value, each with its dotted key; "" for a bare one.

    Numbers, text and what is Opaque are left out.
    """
    if value is None or isinstance(value, torch.Tensor):
        return [("", value)]
    found: list[tuple[str, torch.Tensor | None]] = []
    _collect(value, "", (), found)
    return found


def _collect(
    value: object, prefix: str, above: tuple[int, ...], found: list[tuple[str, torch.Tensor | None]]
) -> None:
    items = _items(value)
    if items is None or len(above) >= _MAX_DEPTH or id(value) in above:
        return
    for name, item in items:
        key = f"{prefix}.{name}" if prefix else name
        if item is None or isinstance(item, torch.Tensor):
            found.append((key, item))
        elif not isinstance(item, (bool, int, float, str)):
            _collect(item, key, (*above, id(value)), found)


def map_tensors(
    value: Any, change: Callable[[torch.Tensor], torch.Tensor], above: tuple[int, ...] = ()
) -> Any:
    """The value with `change` applied to each of its tensors; `above` is for the recursion.

    A container in which nothing changed is given back itself; of others, mappings and dataclasses
    become dicts.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    items = None if isinstance(value, (bool, int, float, str)) else _items(value)
    if items is None or len(above) >= _MAX_DEPTH or id(value) in above:
        return value
    entries = list(items)
    after = [map_tensors(item, change, (*above, id(value))) for _, item in entries]
    if all(new is old for new, (_, old) in zip(after, entries, strict=True)):
        return value
    if isinstance(value, list):
        return after
    if isinstance(value, tuple):
        return type(value)(*after) if hasattr(value, "_fields") else tuple(after)
    return {key: new for new, (key, _) in zip(after, entries, strict=True)}


def _scalar(value: object) -> NoneNode | Scalar | None:
    if value is None:
        return NoneNode()
    if isinstance(value, bool):
        return Scalar(value)
    if isinstance(value, int):
        return Scalar(int(value)) if -_INT64 <= value < _INT64 else None
    if isinstance(value, float):
        return Scalar(float(value))
    return Scalar(str.__str__(value)) if isinstance(value, str) else None


def _items(value: object) -> Iterator[tuple[str, Any]] | None:
    """The entries of a container with their keys as text; None for what is no container."""
    if isinstance(value, (list, tuple)):
        return ((str(index), item) for index, item in enumerate(value))
    if isinstance(value, Mapping):
        return ((str(key), item) for key, item in value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return ((name, getattr(value, name)) for name in names if hasattr(value, name))
    return None


def _opaque(value: object) -> Opaque:
    cls = type(value)
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{cls.__name__}: repr raised {type(error).__name__}>"
    if len(text) > _REPR_LENGTH:
        text = text[: _REPR_LENGTH - 3] + "..."
    return Opaque(f"{cls.__module__}.{cls.__qualname__}", text)
