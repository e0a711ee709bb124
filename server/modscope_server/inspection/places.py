"""One place in a structured value: finding the tensor there, and the same value with another one there."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from modscope_server.inspection.values import named_tensors

__all__ = ["NoSuchPlace", "only_key", "replaced", "tensor_at_key"]


class NoSuchPlace(Exception):
    """A value that has no tensor at a key; its message says what it has."""


def only_key(value: object) -> str:
    """The key of the only tensor of a value. Raises NoSuchPlace where there is none, or are several."""
    keys = [key for key, tensor in named_tensors(value) if tensor is not None]
    if len(keys) != 1:
        raise NoSuchPlace(f"it needs a key: the value has {_listed(keys)}")
    return keys[0]


def tensor_at_key(value: object, key: str) -> torch.Tensor:
    """The tensor of a value at a dotted key, as `named_tensors` names it. Raises NoSuchPlace."""
    found = named_tensors(value)
    for name, tensor in found:
        if name == key and tensor is not None:
            return tensor
    if any(name == key for name, _ in found):
        raise NoSuchPlace(f"the value is None at key {key!r}")
    keys = [name for name, tensor in found if tensor is not None]
    raise NoSuchPlace(f"there is no key {key!r}: the value has {_listed(keys)}")


def replaced(value: Any, key: str, tensor: torch.Tensor) -> Any:
    """The value with this tensor at a key, and all else as it is; a container on the way is copied.

    Tuples, named tuples, lists, mappings and dataclasses keep their class. Raises NoSuchPlace where
    there is no such key, or a container cannot be made anew.
    """
    if not key:
        return tensor
    for name, own, item in _entries(value):
        if name == key:
            return _with(value, own, tensor)
        if key.startswith(f"{name}.") and _holds(item, key[len(name) + 1 :]):
            return _with(value, own, replaced(item, key[len(name) + 1 :], tensor))
    raise NoSuchPlace(f"there is no key {key!r}")


def _holds(value: object, key: str) -> bool:
    return any(name == key for name, _ in named_tensors(value))


def _entries(value: Any) -> list[tuple[str, Any, Any]]:
    """Each entry of a container: its name, its own key or position, what is there."""
    if isinstance(value, (list, tuple)):
        return [(str(index), index, item) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return [(str(key), key, item) for key, item in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
        return [(name, name, getattr(value, name)) for name in names]
    return []


def _with(value: Any, own: Any, item: Any) -> Any:
    """A copy of a container with one entry changed."""
    try:
        if isinstance(value, tuple):
            items = (*value[:own], item, *value[own + 1 :])
            return _tuple_like(value, items)
        changed = copy.copy(value)
        if isinstance(value, (list, Mapping)):
            changed[own] = item
        else:
            object.__setattr__(changed, own, item)
        return changed
    except Exception as error:
        raise NoSuchPlace(f"a {type(value).__name__} cannot be made anew: {error}") from error


def _tuple_like(value: tuple[Any, ...], items: tuple[Any, ...]) -> Any:
    make = getattr(type(value), "_make", None)
    if make is not None:
        return make(items)
    return items if type(value) is tuple else type(value)(items)


def _listed(keys: list[str]) -> str:
    if not keys:
        return "no tensor"
    return ", ".join(repr(key) for key in keys[:10]) + (", ..." if len(keys) > 10 else "")
