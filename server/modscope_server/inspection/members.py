"""A module's own children, parameters and buffers, read from where PyTorch keeps them.

Never getattr with a name that a client sent, which would run properties and parametrizations; and
always from a copy, since the training thread may register members meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import nn

__all__ = ["Kind", "child", "children", "member", "non_persistent", "parameters", "tensors"]

Kind = Literal["_parameters", "_buffers"]
_Store = Literal["_modules", "_parameters", "_buffers"]


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the children, in order; None entries left out, duplicates kept."""
    store = module.__dict__.get("_modules")
    if store is None:
        store = _store_of(module, "_modules")
    if type(store) is dict and not store:
        return []
    return [item for item in list(store.items()) if item[1] is not None]


def tensors(module: nn.Module, kind: Kind) -> list[tuple[str, torch.Tensor]]:
    """Names and tensors of the module's own parameters or buffers, in order; None entries left out."""
    store = module.__dict__.get(kind)
    if store is None:
        store = _store_of(module, kind)
    if type(store) is dict and not store:
        return []
    return [item for item in list(store.items()) if item[1] is not None]


def parameters(module: nn.Module) -> list[torch.Tensor]:
    """The module's own parameters without their names, in order; None entries left out."""
    store = module.__dict__.get("_parameters")
    if store is None:
        store = _store_of(module, "_parameters")
    if type(store) is dict:
        return [t for t in list(store.values()) if t is not None] if store else []
    return [t for _, t in tensors(module, "_parameters")]


def child(module: nn.Module, name: str) -> nn.Module | None:
    """The child of that name; None where there is none."""
    return cast("nn.Module | None", _entry(module, "_modules", name))


def member(module: nn.Module, kind: Kind, name: str) -> torch.Tensor | None:
    """The module's own parameter or buffer of that name; None where there is none."""
    return cast("torch.Tensor | None", _entry(module, kind, name))


def non_persistent(module: nn.Module) -> frozenset[str]:
    """Names of the buffers that are no part of the state_dict."""
    return frozenset(module.__dict__.get("_non_persistent_buffers_set") or ())


def _entry(module: nn.Module, kind: _Store, name: str) -> Any:
    store = module.__dict__.get(kind)
    if type(store) is dict:
        return store.get(name)
    if store is None:
        store = _store_of(module, kind)
    return store[name] if name in store else None  # noqa: SIM401 - a ScriptModule's store has no get


def _store_of(module: nn.Module, kind: _Store) -> Mapping[str, Any]:
    """A store that is not in the module's __dict__: a traced module forwards it to another module."""
    try:
        return cast("Mapping[str, Any]", object.__getattribute__(module, kind))
    except AttributeError:
        return _forwarded(module, kind)


def _forwarded(module: nn.Module, kind: _Store) -> Mapping[str, Any]:
    if isinstance(module, torch.jit.ScriptModule):
        return cast("Mapping[str, Any]", getattr(module, kind))
    return {}
