"""What the client gives back: frozen records, one per noun of the contract.

Those that a listing has no use for are imported when they are first used.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modscope.tensor import TensorData

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy

    from modscope_client.change_types import (
        Intervention,
        LoadResult,
        Operation,
        OperationList,
        OptimizerGroup,
        OptimizerList,
        Snapshot,
    )
    from modscope_client.run_types import Break, Lease, Metric, MetricPoint, Pause, RunStatus

    Array: TypeAlias = numpy.ndarray[Any, numpy.dtype[Any]] | TensorData

__all__ = [
    "Break",
    "BufferInfo",
    "Event",
    "Histogram",
    "HookInfo",
    "Intervention",
    "Lease",
    "LoadResult",
    "Metric",
    "MetricPoint",
    "ModelInfo",
    "ModuleInfo",
    "Opaque",
    "Operation",
    "OperationList",
    "OptimizerGroup",
    "OptimizerList",
    "ParameterInfo",
    "Pause",
    "RunStatus",
    "Sample",
    "ServerInfo",
    "Snapshot",
    "StateDictKeys",
    "Stats",
    "TensorData",
    "TensorDetail",
    "TensorSpec",
    "ValueInfo",
    "WatchCounters",
]

_HOMES = {
    **dict.fromkeys(
        (
            *("Intervention", "LoadResult", "Operation", "OperationList"),
            *("OptimizerGroup", "OptimizerList", "Snapshot"),
        ),
        "change_types",
    ),
    **dict.fromkeys(("Break", "Lease", "Metric", "MetricPoint", "Pause", "RunStatus"), "run_types"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"modscope_client.{_HOMES[name]}")
    value = globals()[name] = getattr(module, name)
    return value


@dataclass(frozen=True, slots=True)
class Stats:
    """A reduction of a tensor; mean, std, min, max and norm are over the finite elements."""

    count: int
    """All elements, nan and inf included."""
    mean: float | None
    """None where no element is finite, and for complex tensors."""
    std: float | None
    """Population standard deviation (correction 0)."""
    min: float | None
    """None where no element is finite, and for complex tensors."""
    max: float | None
    """None as `min` is."""
    norm: float | None
    """L2 norm."""
    zeros: int
    """Elements that equal zero."""
    nan: int
    """Elements that are not a number."""
    inf: int
    """Elements that are plus or minus infinity."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of the finite elements between edges, which are closest about the mean."""

    edges: tuple[float, ...]
    """Ascending, from the least to the largest element; one more than there are counts."""
    counts: tuple[int, ...]
    """Elements in each bucket; one on an inner edge, to within rounding, may count on either side."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Says that statistics and histogram, counts included, are those of some of the elements."""

    elements: int
    """Elements that were looked at, evenly spread over the tensor."""
    mean_error: float | None
    """Standard error of the mean; None where there is no mean."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A registered root module."""

    name: str
    """The name under which it is registered."""
    type: str
    """Name of its class."""
    training: bool
    """nn.Module.training of the root."""
    step: int
    """Completed training iterations since attach."""
    modules: int
    """Modules in it, the root included, each once."""
    parameters: int
    """Parameter elements in it, ties once."""
    trainable_parameters: int
    """Those of them that require a gradient."""
    optimizers: int
    """Optimizers known to hold parameters of it."""
    writable: bool
    """Whether the server admits mutating calls."""


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module as nn.Module.named_modules gives it."""

    path: str
    """Dotted path from the root, wrapper prefixes left out; the root is ""."""
    name: str
    """Last component of the path."""
    type: str
    """Name of its class."""
    qualified_type: str
    """Name of its class with the module that defines it."""
    training: bool
    """nn.Module.training."""
    children: int
    """Immediate children."""
    parameters: int
    """Parameter elements in the whole subtree, ties once."""
    trainable_parameters: int
    """Those of them that require a gradient."""
    aliases: tuple[str, ...] = ()
    """Other paths at which the same module stands."""
    raw_path: str = ""
    """The path that PyTorch gives, wrapper prefixes included."""
    wrappers: tuple[str, ...] = ()
    """Classes of the wrappers around the module, outermost first."""
    repr: str | None = field(default=None, repr=False)
    """repr(module), bounded; None unless this one module was asked for whole."""


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """A parameter as nn.Module.named_parameters gives it."""

    path: str
    """Dotted path from the root, wrapper prefixes left out."""
    shape: tuple[int, ...]
    """Size of each dimension."""
    dtype: str
    """PyTorch's dtype name without its prefix."""
    device: str
    """Where it lives, such as "cpu" or "cuda:0"."""
    numel: int
    """Elements."""
    requires_grad: bool
    """Whether it requires a gradient."""
    has_grad: bool
    """Whether its grad is set."""
    tied_with: tuple[str, ...] = ()
    """Other paths of the same tensor."""
    optimizer: int | None = None
    """Index of the optimizer group that holds it, counted over all optimizers; None where none does."""
    module_type: str = ""
    """Class of the module that owns it."""
    raw_path: str = ""
    """The path that PyTorch gives, wrapper prefixes included."""
    unreadable: str = ""
    """Why its elements cannot be read; "" where they can."""
    stats: Stats | None = None
    """Statistics of its value; None unless they were asked for and can be had."""


@dataclass(frozen=True, slots=True)
class BufferInfo(ParameterInfo):
    """A buffer as nn.Module.named_buffers gives it."""

    persistent: bool = True
    """Whether it is part of the state_dict."""


@dataclass(frozen=True, slots=True)
class TensorDetail:
    """One parameter or buffer, whole."""

    info: ParameterInfo | BufferInfo
    """What it is, statistics included."""
    digest: str | None
    """"sha256:" and the hex digest; None where its elements cannot be read."""
    step: int
    """step_count at which it holds."""


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """One value that a hook saw."""

    role: str
    """"input", "output", "grad_input", "grad_output", "parameter", "gradient" or "metric"."""
    key: str
    """"" for a bare tensor, else its position or keyword, nested ones joined by dots."""
    shape: tuple[int, ...] | None
    """Size of each dimension, of all of it where `index` asked for a part; None where there is no tensor."""
    dtype: str | None
    """PyTorch's dtype name; None for Python's None and for a gradient that cannot be had."""
    stats: Stats | None = None
    """Statistics, where they were asked for; of the part that `index` asked for."""
    histogram: Histogram | None = None
    """Histogram, where it was asked for, of the same."""
    array: Array | None = field(default=None, compare=False)
    """The tensor, or its part, where it was asked for; in the dtype that it was to be cast to."""
    note: str = ""
    """Why there is no value; "" where there is."""
    sample: Sample | None = None
    """How the elements were sampled; None where all were looked at."""


@dataclass(frozen=True, slots=True)
class Event:
    """One firing of a hook."""

    seq: int
    """Number in this subscription, from 0; a gap shows what was dropped."""
    step: int
    """step_count when the hook fired."""
    model: str
    """Name of the model."""
    path: str
    """Path of the module; of the parameter, for parameters and gradients; name of the metric."""
    type: str
    """Class of the module; of the module that owns the parameter; "" for a metric."""
    hook: str
    """"forward_pre", "forward", "backward_pre", "backward", "parameter", "gradient" or "metric"."""
    call: int
    """0-based call of this module in this step."""
    time: float
    """When the hook fired, in Unix seconds."""
    values: list[ValueInfo] = field(hash=False)
    """What it saw."""
    dropped: int
    """Events that this subscription has lost so far."""
    raw_path: str = ""
    """The path that PyTorch gives, wrapper prefixes included."""
    recompute: bool = False
    """Whether this forward was a recomputation inside backward (activation checkpointing)."""


@dataclass(frozen=True, slots=True)
class WatchCounters:
    """Counters of a subscription, as the server told them last."""

    published: int
    """Events published to the subscription, the dropped ones included."""
    dropped: int
    """Events lost."""
    queued: int
    """Events that waited in the server's queue."""
    step: int
    """step_count then."""
    skipped: int = 0
    """Firings that `max_rate` has left out."""
    blocked_seconds: float = 0.0
    """Seconds for which training has waited for this subscriber."""


@dataclass(frozen=True, slots=True)
class HookInfo:
    """A hook that modscope has put on a module."""

    path: str
    """Path of the module; of the parameter, for parameters and gradients; "" for metrics."""
    kind: str
    """"forward_pre", "forward", "backward_pre", "backward", "parameter", "gradient" or "metric"."""
    owner: str
    """Whose it is: "watch", "break", "intervention" or "safe point"."""
    watch_ids: tuple[str, ...]
    """Ids of the watches that it serves."""
    fired: int
    """How often it has fired."""
    last_step: int | None
    """step_count when it fired last; None where it has not."""
    intervention_id: str = ""
    """Id of its intervention; "" where it is none."""
    state: str = ""
    """"armed", "fired" or "blind"; "" where the server does not tell."""
    reason: str = ""
    """Why it is blind, or what it cannot see; "" where it is neither."""
    remedy: str = ""
    """How it is made to fire in compiled code, and what that costs; "" where nothing was needed."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its elements: one entry of a state_dict."""

    key: str
    """Its key, raw as model.state_dict() has it."""
    dtype: str
    """PyTorch's dtype name without its prefix."""
    shape: tuple[int, ...]
    """Size of each dimension."""
    nbytes: int
    """Bytes that its elements take."""


@dataclass(frozen=True, slots=True)
class StateDictKeys:
    """What a model's state_dict holds."""

    entries: tuple[TensorSpec, ...]
    """The keys, in PyTorch's order."""
    not_carried: tuple[str, ...]
    """Keys whose values are no tensors, such as "_extra_state"."""
    step: int
    """step_count at which it holds."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server on this host, as its server.json tells."""

    address: str
    """unix:/path or host:port."""
    pid: int
    """Process that it lives in."""
    started: float
    """When it started, in Unix seconds."""
    models: tuple[str, ...]
    """Names of the models that it serves."""
    writable: bool
    """Whether it admits mutating calls."""
    version: str
    """Version of modscope that serves."""
    tls: bool = False
    """Whether it speaks TLS."""
    token: str = field(default="", repr=False)
    """The operator token."""
    viewer_token: str = field(default="", repr=False)
    """The viewer token."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value of a model's output that has no form on the wire: what it is, for a person to read."""

    type: str
    """Qualified name of its class."""
    repr: str
    """Its repr, cut to 200 characters."""
