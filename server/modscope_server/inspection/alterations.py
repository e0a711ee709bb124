"""What an intervention does to a tensor: a new tensor of the same shape, dtype and device, never in place.

Each is the plain torch operation that one would write by hand, so that autograd treats it as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from modscope_server.errors import BadRequest, NotFinite
from modscope_server.inspection.casting import finite_elements
from modscope_server.inspection.slices import Index, parse_index
from modscope_server.inspection.tensors import dtype_name, unreadable_reason

__all__ = ["Alteration", "Kind", "Unfit", "altered"]

Kind = Literal["scale", "add", "clamp", "zero", "replace", "noise"]
_SEEDS = 1 << 63


class Unfit(Exception):
    """A tensor that an alteration cannot serve; its message says why."""


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """What is done. Raises BadRequest and NotFinite for what cannot be."""

    kind: Kind
    number: float = 0.0
    """The factor of "scale", the summand of "add", the standard deviation of "noise"."""
    low: float | None = None
    """Lower bound of "clamp"; None for none."""
    high: float | None = None
    """Upper bound of "clamp"; None for none."""
    tensor: torch.Tensor | None = None
    """What "replace" puts in place, or "add" adds instead of a number; broadcast as torch does."""
    seed: int = 0
    """Of "noise": its n-th application, from 0, draws from a torch.Generator seeded with seed + n."""
    index: str = ""
    """Which part of the tensor, such as "[:, -1, :]"; empty for all of it."""
    fitted: dict[tuple[torch.dtype, torch.device], torch.Tensor] = field(
        default_factory=dict, compare=False, repr=False
    )
    """The tensor in other dtypes and on other devices, as far as it was needed there."""

    def __post_init__(self) -> None:
        parse_index(self.index)
        if not math.isfinite(self.number):
            raise NotFinite(
                f"{self.kind} {self.number}",
                hint="give a finite number; replace with an array brings nan and inf in",
                field=self.kind,
            )
        if self.kind == "noise" and self.number < 0:
            raise BadRequest(
                f"noise {self.number:g}", hint="give a standard deviation, 0 or more", field="noise"
            )
        if self.kind == "replace" and self.tensor is None:
            raise BadRequest("nothing to put in place", hint="send a tensor", field="replace")
        if self.kind == "clamp":
            self._check_bounds()

    def _check_bounds(self) -> None:
        low, high = self.low, self.high
        if low is None and high is None:
            raise BadRequest("a clamp without bounds", hint="give one of them, or both", field="clamp")
        if any(bound is not None and math.isnan(bound) for bound in (low, high)):
            raise NotFinite("a bound of the clamp is nan", hint="give numbers", field="clamp")
        if low is not None and high is not None and low > high:
            raise BadRequest(
                f"the clamp's bounds are {low:g} and {high:g}", hint="give the lower one first", field="clamp"
            )


def altered(tensor: torch.Tensor, how: Alteration, application: int = 0) -> torch.Tensor:
    """The altered tensor. `application` is the number of the application, from 0. Raises Unfit."""
    reason = unreadable_reason(tensor)
    if reason:
        raise Unfit(f"the tensor cannot be altered: it is {reason}")
    index: Index = parse_index(how.index)
    try:
        part = tensor[index] if index else tensor
        value = _value(part, how, application)
    except (IndexError, RuntimeError, TypeError) as error:
        raise Unfit(f"{how.kind} does not fit {_shown(tensor)}: {_first_line(error)}") from error
    if value.shape != part.shape or value.dtype != part.dtype:
        raise Unfit(f"{how.kind} would make {_shown(value)} of {_shown(part)}")
    if not index and how.kind not in ("zero", "replace"):
        return value
    # Written into a copy, so that the gradient of what is overwritten is zero, and a loss keeps its graph.
    whole = tensor.clone()
    whole[index or ...] = value
    return whole


def _value(part: torch.Tensor, how: Alteration, application: int) -> torch.Tensor:
    if how.kind == "scale":
        return part * _number(part, how.number)
    if how.kind == "add":
        return part + (_number(part, how.number) if how.tensor is None else _fitted(part, how))
    if how.kind == "clamp":
        low, high = (None if bound is None else _bound(part, bound) for bound in (how.low, how.high))
        return part.clamp(low, high)
    if how.kind == "zero":
        return torch.zeros_like(part, requires_grad=False)
    if how.kind == "noise":
        return part + _noise(part, how, application)
    return _fitted(part, how).expand(part.shape)


def _number(part: torch.Tensor, number: float) -> float | int:
    """The number in a kind that keeps the dtype, where there is one."""
    if part.is_floating_point() or part.is_complex() or not number.is_integer():
        return number
    return int(number)


def _bound(part: torch.Tensor, bound: float) -> float | int | None:
    """A bound of a clamp; an infinite one is none for whole numbers."""
    if part.is_floating_point():
        return bound
    return None if math.isinf(bound) else _number(part, bound)


def _fitted(part: torch.Tensor, how: Alteration) -> torch.Tensor:
    """The tensor that came from a client, in the dtype and on the device of the part."""
    value = how.tensor
    assert value is not None
    if not _broadcasts(value.shape, part.shape):
        raise Unfit(f"an array of shape {list(value.shape)} does not fit {list(part.shape)}")
    place = (part.dtype, part.device)
    if place not in how.fitted:
        # Made once, and so that a graph may use it even where it is first needed in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            how.fitted[place] = _converted(value, *place)
    return how.fitted[place]


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    ends = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, wanted) for size, wanted in ends)


def _converted(value: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if not torch.can_cast(value.dtype, dtype):
        raise Unfit(f"a {dtype_name(value)} array does not go into {str(dtype).removeprefix('torch.')}")
    made = value.to(dtype)
    if finite_elements(made).sum() != finite_elements(value).sum():
        raise Unfit(f"the array has numbers that {dtype_name(made)} does not have")
    return made.to(device)


def _noise(part: torch.Tensor, how: Alteration, application: int) -> torch.Tensor:
    if not (part.is_floating_point() or part.is_complex()):
        raise Unfit(f"noise is no {dtype_name(part)}")
    generator = torch.Generator(part.device).manual_seed((how.seed + application) % _SEEDS)
    drawn = torch.randn(part.shape, generator=generator, dtype=part.dtype, device=part.device)
    return drawn * how.number


def _shown(tensor: torch.Tensor) -> str:
    return f"{dtype_name(tensor)} {list(tensor.shape)}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
