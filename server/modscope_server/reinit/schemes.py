"""The closed table of schemes: torch.nn.init's in-place functions, their arguments and limits."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from modscope_server.errors import BadRequest, UnknownScheme

__all__ = ["RESET_PARAMETERS", "SCHEMES", "Argument", "Scheme", "Value", "checked_arguments", "find_scheme"]

Value = bool | int | float | str

RESET_PARAMETERS = "reset_parameters"
"""The scheme that leaves the values to the module's own method."""

_NONLINEARITIES = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "selu",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """What an argument of a scheme takes."""

    kind: Literal["real", "integer", "text"] = "real"
    required: bool = False
    at_least: float = -math.inf
    at_most: float = math.inf
    choices: tuple[str, ...] = ()
    """The texts that it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One function of torch.nn.init."""

    name: str
    fill: Callable[..., torch.Tensor]
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    dimensions: tuple[int, int] = (0, 1000)
    """Fewest and most dimensions of a tensor that it can serve."""

    def unsuitable(self, shape: tuple[int, ...], arguments: Mapping[str, Value]) -> str:
        """Why it cannot serve a tensor of this shape; "" where it can."""
        fewest, most = self.dimensions
        if not fewest <= len(shape) <= most:
            wanted = (
                str(fewest) if fewest == most else f"{fewest} or more" if most > 5 else f"{fewest} to {most}"
            )
            return f"{self.name} needs {wanted} dimensions"
        groups = arguments.get("groups", 1)
        if isinstance(groups, int) and groups > 1 and shape[0] % groups:
            return f"{self.name} needs a first dimension that {groups} groups divide"
        return ""


_REAL = Argument()
_SPREAD = Argument(at_least=0.0)
_FANS = {
    "a": _REAL,
    "mode": Argument(kind="text", choices=("fan_in", "fan_out")),
    "nonlinearity": Argument(kind="text", choices=_NONLINEARITIES),
}

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="uniform_", fill=nn.init.uniform_, arguments={"a": _REAL, "b": _REAL}),
        Scheme(name="normal_", fill=nn.init.normal_, arguments={"mean": _REAL, "std": _SPREAD}),
        Scheme(
            name="trunc_normal_",
            fill=nn.init.trunc_normal_,
            arguments={"mean": _REAL, "std": _SPREAD, "a": _REAL, "b": _REAL},
        ),
        Scheme(name="constant_", fill=nn.init.constant_, arguments={"val": Argument(required=True)}),
        Scheme(name="ones_", fill=nn.init.ones_),
        Scheme(name="zeros_", fill=nn.init.zeros_),
        Scheme(name="eye_", fill=nn.init.eye_, dimensions=(2, 2)),
        Scheme(
            name="dirac_",
            fill=nn.init.dirac_,
            arguments={"groups": Argument(kind="integer", at_least=1)},
            dimensions=(3, 5),
        ),
        Scheme(
            name="xavier_uniform_",
            fill=nn.init.xavier_uniform_,
            arguments={"gain": _REAL},
            dimensions=(2, 1000),
        ),
        Scheme(
            name="xavier_normal_",
            fill=nn.init.xavier_normal_,
            arguments={"gain": _SPREAD},
            dimensions=(2, 1000),
        ),
        Scheme(name="kaiming_uniform_", fill=nn.init.kaiming_uniform_, arguments=_FANS, dimensions=(2, 1000)),
        Scheme(name="kaiming_normal_", fill=nn.init.kaiming_normal_, arguments=_FANS, dimensions=(2, 1000)),
        Scheme(name="orthogonal_", fill=nn.init.orthogonal_, arguments={"gain": _REAL}, dimensions=(2, 1000)),
        Scheme(
            name="sparse_",
            fill=nn.init.sparse_,
            arguments={"sparsity": Argument(required=True, at_least=0.0, at_most=1.0), "std": _SPREAD},
            dimensions=(2, 2),
        ),
    )
}
"""Name -> scheme."""


def find_scheme(name: str) -> Scheme | None:
    """The scheme of that name; None for reset_parameters. Raises UnknownScheme, which tells near names."""
    if name == RESET_PARAMETERS:
        return None
    scheme = SCHEMES.get(name)
    if scheme is None:
        known = [*SCHEMES, RESET_PARAMETERS]
        near = difflib.get_close_matches(name, known, n=3)
        raise UnknownScheme(
            f"unknown scheme {name!r}",
            hint=f"did you mean {' or '.join(near)}?" if near else f"it is one of: {', '.join(known)}",
            field="scheme",
        )
    return scheme


def checked_arguments(scheme: Scheme | None, arguments: Mapping[str, Value]) -> dict[str, Value]:
    """The arguments, if the scheme takes them; None is reset_parameters. Raises BadRequest."""
    name = scheme.name if scheme else RESET_PARAMETERS
    known = scheme.arguments if scheme else {}
    for argument in arguments:
        if argument not in known:
            takes = f"{name} takes {', '.join(known)}" if known else f"{name} takes no arguments"
            raise _bad(argument, f"{name} has no argument {argument!r}", takes)
    for argument, rule in known.items():
        if argument in arguments:
            _check_value(name, argument, rule, arguments[argument])
        elif rule.required:
            raise _bad(argument, f"{name} needs the argument {argument!r}", f"give a number for {argument}")
    if scheme:
        _check_together(name, arguments)
    return dict(arguments)


def _check_value(scheme: str, argument: str, rule: Argument, value: Value) -> None:
    if rule.kind == "text":
        if value not in rule.choices:
            hint = f"it is one of: {', '.join(rule.choices)}"
            raise _bad(argument, f"{argument} of {scheme} cannot be {value!r}", hint)
        return
    wanted = int if rule.kind == "integer" else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        what = "a whole number" if rule.kind == "integer" else "a number"
        raise _bad(
            argument, f"{argument} of {scheme} is {what}, not {value!r}", f"give {what} for {argument}"
        )
    number = float(value)
    if not math.isfinite(number) or not rule.at_least <= number <= rule.at_most:
        bounds = [f"at least {rule.at_least:g}"] if rule.at_least > -math.inf else []
        bounds += [f"at most {rule.at_most:g}"] if rule.at_most < math.inf else []
        hint = f"it is finite{''.join(f' and {bound}' for bound in bounds)}"
        raise _bad(argument, f"{argument} of {scheme} cannot be {value!r}", hint)


def _check_together(scheme: str, arguments: Mapping[str, Value]) -> None:
    def number(name: str, default: float) -> float:
        return float(arguments.get(name, default))

    if scheme == "uniform_" and number("a", 0.0) > number("b", 1.0):
        raise _bad(
            "b", "uniform_ draws from a to b, but a is above b", "give a <= b; they are 0 and 1 by default"
        )
    if scheme == "trunc_normal_":
        mean, std, low, high = number("mean", 0.0), number("std", 1.0), number("a", -2.0), number("b", 2.0)
        if std <= 0 or low >= high or not low - 2 * std <= mean <= high + 2 * std:
            raise _bad(
                "mean",
                f"trunc_normal_ cannot draw with mean {mean:g} and std {std:g} between {low:g} and {high:g}",
                "give std > 0, a < b and a mean at most two std outside; a is -2 and b is 2 by default",
            )


def _bad(argument: str, message: str, hint: str) -> BadRequest:
    return BadRequest(message, hint=hint, field=f"arguments.{argument}")
