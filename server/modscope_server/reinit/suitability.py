"""Whether a scheme, or a module's own reset_parameters, can serve what was selected."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from modscope_server.inspection.edits import overlaps_itself
from modscope_server.inspection.members import child, children, tensors
from modscope_server.inspection.randomness import keeping_random_state
from modscope_server.inspection.tensors import dtype_name, unreadable_reason
from modscope_server.reinit.schemes import RESET_PARAMETERS, Scheme, Value

__all__ = ["SchemeProbe", "closed_reason", "computed_names", "reset_method", "reset_obstacle"]

_COMPUTING_HOOKS = ("WeightNorm", "SpectralNorm", "BasePruningMethod")
"""Classes of the forward pre-hooks that compute a tensor anew from others before each forward."""


class SchemeProbe:
    """Tells for each tensor why a scheme cannot serve it; tries the scheme on a small one of its kind."""

    def __init__(self, scheme: Scheme, arguments: Mapping[str, Value]) -> None:
        self._scheme = scheme
        self._arguments = arguments
        self._known: dict[tuple[torch.dtype, torch.device, int], str] = {}

    def obstacle(self, tensor: torch.Tensor) -> str:
        """Why the scheme cannot serve the tensor; "" where it can."""
        reason = self._scheme.unsuitable(tuple(tensor.shape), self._arguments)
        if reason:
            return f"{reason}, and it has shape {list(tensor.shape)}"
        if overlaps_itself(tensor):
            return "its elements share memory"
        if tensor.is_inference():
            return "it was made under inference_mode"
        kind = (tensor.dtype, tensor.device, tensor.ndim)
        if kind not in self._known:
            self._known[kind] = self._try(tensor)
        return self._known[kind]

    def _try(self, tensor: torch.Tensor) -> str:
        groups = self._arguments.get("groups", 1)
        shape = [int(groups) * 2, *[2] * (tensor.ndim - 1)] if tensor.ndim else []
        small = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
        try:
            with keeping_random_state(), torch.inference_mode(False), torch.no_grad():
                self._scheme.fill(small, **self._arguments)
        except Exception as error:
            return f"{self._scheme.name} cannot serve {dtype_name(tensor)}: {error}"
        value = self._arguments.get("val")
        real = tensor.is_floating_point() or tensor.is_complex()
        if value is not None and not real and small.reshape(-1)[0].item() != value:
            return f"{dtype_name(tensor)} cannot hold {value!r}"
        return ""


def closed_reason(module: nn.Module) -> tuple[str, str]:
    """Name of an own parameter or buffer that has no elements to set, and why; empty where all have."""
    for kind in ("_parameters", "_buffers"):
        for name, tensor in tensors(module, kind):
            reason = unreadable_reason(tensor)
            if reason:
                return name, reason
    return "", ""


def reset_method(module: nn.Module) -> Callable[[], Any] | None:
    """The module's reset_parameters, bound; None where it has none."""
    own = module.__dict__.get(RESET_PARAMETERS)
    if own is None and not hasattr(type(module), RESET_PARAMETERS):
        return None
    method = own or getattr(module, RESET_PARAMETERS)
    return method if callable(method) else None


def reset_obstacle(module: nn.Module) -> str:
    """Why a module that has tensors of its own cannot be reset; "" where it can."""
    method = reset_method(module)
    if method is None:
        return "it has parameters of its own but no reset_parameters()"
    computed = computed_names(module)
    if computed:
        return f"{', '.join(computed)} is computed from other tensors: what reset_parameters() writes is lost"
    try:
        inspect.signature(method).bind()
    except TypeError as error:
        return f"its reset_parameters() cannot be called without arguments: {error}"
    except ValueError:
        return ""
    return ""


def computed_names(module: nn.Module) -> list[str]:
    """Names under which the module shows a tensor that is computed from its parameters."""
    held = child(module, "parametrizations") if parametrize.is_parametrized(module) else None
    names = [] if held is None else [name for name, _ in children(held)]
    for hook in module._forward_pre_hooks.values():
        if any(cls.__name__ in _COMPUTING_HOOKS for cls in type(hook).__mro__):
            names.append(str(getattr(hook, "name", None) or getattr(hook, "_tensor_name", "a parameter")))
    return names
