"""isinstance by the name of a class, without importing anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["is_instance", "qualified_name", "type_matcher"]


def qualified_name(cls: type) -> str:
    """The class's name with the module that defines it, such as "torch.nn.modules.linear.Linear"."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_instance(module: nn.Module, type_name: str) -> bool:
    """Whether a class of that name is anywhere in the module's class hierarchy.

    A class name ("Linear"), the qualified name ("torch.nn.modules.linear.Linear"), or any path from
    which the class can be had in modules that are loaded ("torch.nn.Linear").
    """
    return _matches(type(module), type_name, _public(type_name))


def type_matcher(type_name: str) -> Callable[[nn.Module], bool]:
    """`is_instance` for many modules: each class is looked at once. "" matches every module."""
    if not type_name:
        return lambda module: True
    public = _public(type_name)
    known: dict[type, bool] = {}

    def matches(module: nn.Module) -> bool:
        cls = type(module)
        answer = known.get(cls)
        if answer is None:
            answer = known[cls] = _matches(cls, type_name, public)
        return answer

    return matches


def _matches(cls: type, type_name: str, public: Any) -> bool:
    for base in cls.__mro__:
        if base is object:
            continue
        if public is base or type_name in (base.__name__, base.__qualname__, qualified_name(base)):
            return True
        if _declares(type_name, base):
            return True
    return False


def _public(type_name: str) -> Any:
    """What stands at that path in a loaded module; None where nothing does."""
    module_name, _, name = type_name.rpartition(".")
    module = sys.modules.get(module_name) if module_name else None
    return None if module is None else vars(module).get(name)


def _declares(type_name: str, cls: type) -> bool:
    """Whether a loaded package that fills itself on demand exports the class under that path."""
    package, _, name = type_name.rpartition(".")
    if name != cls.__qualname__ or not package or not str(cls.__module__).startswith(f"{package}."):
        return False
    module = sys.modules.get(package)
    return module is not None and name in (vars(module).get("__all__") or ())
