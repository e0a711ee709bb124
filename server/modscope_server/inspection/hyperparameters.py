"""Hyper-parameters of optimizer groups as plain values: read, and converted to the kind that is there."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch.optim import Optimizer

from modscope_server.errors import BadRequest
from modscope_server.inspection.optimizers import Group
from modscope_server.inspection.param_groups import options_of
from modscope_server.inspection.records import Plain

__all__ = ["converted", "names", "plain"]

_REAL_ENDINGS = ("lr", "decay", "momentum", "eps")
_MOST_TEXT = 200


def names(group: Group) -> list[str]:
    """Names of the group's hyper-parameters, in its order."""
    return list(options_of(group.options))


def plain(value: object) -> Plain:
    """A hyper-parameter outside of the process; what is neither number, text nor list as its repr."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor) and not value.is_meta and value.numel() <= 100:
        listed: Plain = value.detach().reshape(-1).tolist()
        return listed[0] if isinstance(listed, list) and value.numel() == 1 else listed
    try:
        return repr(value)[:_MOST_TEXT]
    except Exception:
        return type(value).__name__


def converted(group: Group, name: str, given: Plain) -> Any:
    """`given` as the kind that the hyper-parameter has: a tuple for a tuple, a number for a tensor of one.

    Raises BadRequest for another kind, nan and inf, and a negative learning rate.
    """
    present = group.options[name]
    if present is None:
        present = group.optimizer.defaults.get(name)
    nullable = group.options[name] is None or group.optimizer.defaults.get(name, 0) is None
    try:
        value = _as(present, given, whole=_is_whole(group.optimizer, name), nullable=nullable)
    except _OtherKind as error:
        raise BadRequest(
            f"{name} of {group} is {plain(group.options[name])!r} and takes {error}, not {given!r}",
            hint="modscope optim shows each group's hyper-parameters",
            field=f"hyperparameters.{name}",
        ) from None
    if name.endswith("lr") and isinstance(value, (int, float)) and value < 0:
        raise BadRequest(
            f"{name} cannot be negative: {given!r}",
            hint="maximize=True makes an optimizer climb",
            field=f"hyperparameters.{name}",
        )
    return value


class _OtherKind(Exception):
    """The value is of another kind than this."""


def _as(present: object, given: Plain, *, whole: bool, nullable: bool) -> Any:
    if given is None:
        if nullable:
            return None
        raise _OtherKind("a value")
    if isinstance(present, bool):
        if isinstance(given, bool):
            return given
        raise _OtherKind("true or false")
    if isinstance(present, str):
        if isinstance(given, str):
            return given
        raise _OtherKind("text")
    if isinstance(present, (int, float)):
        return _number(given, whole=whole and isinstance(present, int))
    if isinstance(present, torch.Tensor) and present.numel() == 1 and not present.is_complex():
        return _for_tensor(present, given)
    if isinstance(present, (list, tuple)):
        if not isinstance(given, list) or len(given) != len(present):
            raise _OtherKind(f"a list of {len(present)}")
        items = [
            _as(old, new, whole=False, nullable=old is None) for old, new in zip(present, given, strict=True)
        ]
        return items if isinstance(present, list) else tuple(items)
    if present is None and isinstance(given, (bool, str)):
        return given
    if present is None:
        return _number(given, whole=whole)
    raise _OtherKind("nothing that can be sent")


def _number(given: Plain, *, whole: bool) -> int | float:
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise _OtherKind("a number")
    if not math.isfinite(given):
        raise _OtherKind("a finite number")
    if not whole:
        return float(given)
    if given != int(given):
        raise _OtherKind("a whole number")
    return int(given)


def _for_tensor(present: torch.Tensor, given: Plain) -> int | float:
    value = _number(given, whole=not present.is_floating_point())
    largest = (torch.finfo if present.is_floating_point() else torch.iinfo)(present.dtype).max
    if abs(value) > largest:
        raise _OtherKind(f"a number that {str(present.dtype).removeprefix('torch.')} can hold")
    return value


def _is_whole(optimizer: Optimizer, name: str) -> bool:
    """Whether a hyper-parameter that is an int now must stay whole, as max_iter; lr=1 need not."""
    try:
        parameter = inspect.signature(type(optimizer)).parameters.get(name)
    except (TypeError, ValueError):
        parameter = None
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return not name.endswith(_REAL_ENDINGS)
    return "float" not in str(parameter.annotation)
