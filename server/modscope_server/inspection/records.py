"""What the inspection functions hand over: frozen records for listings, located objects for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

__all__ = [
    "HistogramRecord",
    "Located",
    "LocatedTensor",
    "ModuleRecord",
    "OptimizerGroup",
    "Plain",
    "SampleRecord",
    "StatsRecord",
    "TensorRecord",
]

Plain: TypeAlias = "bool | int | float | str | list[Plain] | None"
"""What a hyper-parameter is outside of the process: JSON without objects."""


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """A live module and where it stands."""

    path: str
    """Dotted path from the root, wrapper prefixes left out; the root is ""."""
    raw_path: str
    """The path that PyTorch gives."""
    module: nn.Module
    wrappers: tuple[str, ...] = ()
    """Classes of the wrappers around it, outermost first."""


@dataclass(frozen=True, slots=True, eq=False)
class LocatedTensor:
    """A live parameter or buffer and where it stands."""

    path: str
    """Dotted path from the root, wrapper prefixes left out."""
    raw_path: str
    """The path that PyTorch gives."""
    name: str
    """Its name in the module that owns it."""
    tensor: torch.Tensor
    owner: nn.Module
    owner_path: str
    """Path of the module that owns it."""
    persistent: bool | None
    """Whether a buffer is part of the state_dict; None for a parameter."""
    aliases: tuple[str, ...] = ()
    """Other paths of the same tensor; not looked up by `find_tensor`."""


class ModuleRecord(NamedTuple):
    """A module as nn.Module.named_modules gives it; a tuple, since models of 100,000 modules are listed."""

    path: str
    """Dotted path from the root, wrapper prefixes left out; the root is ""."""
    name: str
    """Last component of the path."""
    type: str
    """Name of its class."""
    qualified_type: str
    """Name of its class with the module that defines it."""
    training: bool
    children: int
    """Immediate children."""
    parameters: int
    """Parameter elements in the whole subtree, ties once."""
    trainable_parameters: int
    """Those of them that require a gradient."""
    aliases: tuple[str, ...]
    """Other paths at which the same module stands."""
    raw_path: str
    """The path that PyTorch gives."""
    wrappers: tuple[str, ...]
    """Classes of the wrappers around it, outermost first."""


class StatsRecord(NamedTuple):
    """A reduction of a tensor; mean, std, min, max and norm are over the finite elements.

    A tuple, since one is made for each value of each event.
    """

    count: int  # type: ignore[assignment]  # tuple.count, which nobody calls
    """All elements, nan and inf included."""
    mean: float | None
    """None where no element is finite."""
    std: float | None
    """Population standard deviation (correction 0); None where no element is finite."""
    min: float | None
    """None where no element is finite, and for complex tensors."""
    max: float | None
    """None where no element is finite, and for complex tensors."""
    norm: float | None
    """L2; None where no element is finite."""
    zeros: int
    nan: int
    inf: int


@dataclass(frozen=True, slots=True)
class HistogramRecord:
    """Counts of the finite elements between edges."""

    edges: tuple[float, ...]
    """Ascending; one more than there are counts. From the least to the largest element."""
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """Says that statistics are those of some of the elements."""

    elements: int
    """Elements that were looked at."""
    mean_error: float | None
    """Standard error of the mean; None where there is no mean, or one element alone."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A parameter or buffer as nn.Module.named_parameters and named_buffers give it."""

    path: str
    """Dotted path from the root, wrapper prefixes left out."""
    shape: tuple[int, ...]
    """() also where the shape is not known."""
    dtype: str
    """torch's name without its prefix."""
    device: str
    numel: int
    requires_grad: bool
    has_grad: bool
    tied_with: tuple[str, ...]
    """Other paths of the same tensor."""
    optimizer: int | None
    """Index of the optimizer group that holds it, counted over all optimizers; None where none does."""
    module_type: str
    """Class of the module that owns it."""
    raw_path: str
    """The path that PyTorch gives."""
    unreadable: str
    """Why its elements cannot be read; empty where they can."""
    stats: StatsRecord | None = None
    """Set only where it was asked for."""
    persistent: bool | None = None
    """Whether a buffer is part of the state_dict; None for a parameter."""


@dataclass(frozen=True, slots=True)
class OptimizerGroup:
    """A parameter group of an optimizer, as one model sees it."""

    optimizer: str
    """Class of the optimizer, such as "AdamW"."""
    index: int
    """Counted over all optimizers."""
    lr: float | None
    """None where the optimizer has none."""
    weight_decay: float | None
    """None where the optimizer has none."""
    parameters: tuple[str, ...]
    """Paths of the model's parameters that it holds, in its order."""
    options: Mapping[str, Plain]
    """All other hyper-parameters by name."""
    state_keys: tuple[str, ...]
    """Keys of what it keeps of a parameter, such as "exp_avg"; empty before its first step."""
    strangers: tuple[str, ...]
    """Parameters that it holds and that no registered model has, each as dtype and shape."""
    base_lr: float | None
    """Learning rate from which a scheduler computes; None where none is known."""
    scheduler: str
    """Class of the scheduler that is known to set its lr; empty where none is."""
