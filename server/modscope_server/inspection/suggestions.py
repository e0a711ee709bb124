"""What to say of a path that names nothing: what is there, and what may have been meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

from torch import nn

from modscope.paths import join
from modscope_server.errors import UnknownPath
from modscope_server.inspection.members import child, children, tensors
from modscope_server.inspection.walk import walk
from modscope_server.inspection.wrappers import inner_of

__all__ = ["unknown_module", "unknown_tensor"]

_SHOWN = 5
_COMPARED = 2_000
"""Most names that a misspelt one is compared with; each comparison takes tens of microseconds."""


def unknown_module(root: nn.Module, path: str) -> UnknownPath:
    """The error for a path at which no module stands."""
    owner, owner_path, missing = _deepest(root, path)
    if missing in _own(owner):
        tensor_path = join(owner_path, missing)
        return UnknownPath(
            f"{tensor_path!r} is a parameter or buffer, not a module",
            hint=f"ask for its module, {owner_path!r}, or read it as a tensor",
            field="path",
        )
    names = [name for name, _ in children(owner)]
    paths = (visit.path for visit in walk(root).visits if not visit.hidden)
    near = _near(missing, owner_path, names, paths, path)
    return UnknownPath(
        f"no module at {_short(path)}", hint=near or "list the modules to see the paths", field="path"
    )


def unknown_tensor(root: nn.Module, path: str) -> UnknownPath:
    """The error for a path at which no parameter and no buffer stands."""
    owner, owner_path, missing = _deepest(root, path)
    message = f"no parameter or buffer at {_short(path)}"
    behind = _parametrized(owner, missing)
    if behind:
        stored = ", ".join(join(owner_path, name) for name in behind)
        return UnknownPath(
            message,
            hint=f"{missing!r} is computed anew on each use; what is stored is {stored}",
            field="path",
        )
    below = missing and child(owner, missing)
    if not missing or below:
        module, module_path = (below, join(owner_path, missing)) if below else (owner, owner_path)
        assert isinstance(module, nn.Module)
        own = [join(module_path, name) for name in _own(module)]
        hint = (
            f"it is a module; its own: {_listed(own)}" if own else "it is a module without tensors of its own"
        )
        return UnknownPath(message, hint=hint, field="path")
    paths = (join(visit.path, name) for visit in walk(root).visits for name in _own(visit.module))
    names = _own(owner) + [name for name, _ in children(owner)]
    near = _near(missing, owner_path, names, paths, path)
    return UnknownPath(message, hint=near or "list the parameters and buffers to see the paths", field="path")


def _deepest(root: nn.Module, path: str) -> tuple[nn.Module, str, str]:
    """The deepest module on the way, its path, and the name that it lacks ("" where it lacks none)."""
    module, at = _unwrapped(root), ""
    names = path.split(".", 1_500) if path else []
    for name in names:
        below = child(module, name)
        if below is None:
            return module, at, name
        module, at = _unwrapped(below), join(at, name)
    return module, at, ""


def _unwrapped(module: nn.Module) -> nn.Module:
    inner = inner_of(module)
    while inner is not None:
        module = inner[1]
        inner = inner_of(module)
    return module


def _own(module: nn.Module) -> list[str]:
    return [name for name, _ in tensors(module, "_parameters")] + [
        name for name, _ in tensors(module, "_buffers")
    ]


def _parametrized(owner: nn.Module, name: str) -> list[str]:
    """Names, below the owner, of the tensors from which an attribute is computed."""
    registry = child(owner, "parametrizations")
    behind = registry and child(registry, name)
    if isinstance(behind, nn.Module):
        return [f"parametrizations.{name}.{own}" for own in _own(behind) if own.startswith("original")]
    stored = set(_own(owner))
    return [name + suffix for suffix in ("_g", "_v", "_orig", "_mask") if name and name + suffix in stored]


def _near(missing: str, owner_path: str, names: list[str], paths: Iterable[str], asked: str) -> str:
    """A hint with the paths that may have been meant; "" where nothing is near."""
    close = [join(owner_path, name) for name in get_close_matches(missing, names[:_COMPARED], _SHOWN)]
    found = list(dict.fromkeys([*close, *islice((p for p in paths if p.endswith(f".{asked}")), _SHOWN)]))
    if found:
        return f"did you mean {_listed(found)}?"
    if names:
        return f"{owner_path or 'the root'} has: {_listed(names)}"
    return ""


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _short(path: str) -> str:
    return repr(path) if len(path) <= 200 else f"{path[:200]!r}... ({len(path)} characters)"
