"""Indices into tensors as text, such as "[:, -1, ...]": whole numbers, slices and an ellipsis."""

from __future__ import annotations

import functools
import re
from types import EllipsisType
from typing import TypeAlias

from modscope_server.errors import BadRequest

__all__ = ["Index", "parse_index"]

Index: TypeAlias = tuple[int | slice | EllipsisType, ...]
"""What torch takes in square brackets."""

_LONGEST = 200
_NUMBER = r"\s*([+-]?\d{1,18})?\s*"
_INTEGER = re.compile(r"\s*([+-]?\d{1,18})\s*", re.ASCII)
_SLICE = re.compile(f"{_NUMBER}:{_NUMBER}(?::{_NUMBER})?", re.ASCII)


@functools.lru_cache(256)
def parse_index(text: str) -> Index:
    """The index that a text means; () for an empty one. Nothing is evaluated.

    The square brackets may be left out. Raises BadRequest for what is none, and for a step below 1,
    which torch does not have.
    """
    inner = text.strip()
    if not inner:
        return ()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    parts = inner.rstrip().removesuffix(",").split(",")
    if len(text) > _LONGEST:
        raise _refused(text, f"it is longer than {_LONGEST} characters")
    index = tuple(_part(part, text) for part in parts)
    if sum(part is ... for part in index) > 1:
        raise _refused(text, "it has more than one ellipsis")
    return index


def _part(part: str, text: str) -> int | slice | EllipsisType:
    if part.strip() == "...":
        return ...
    number = _INTEGER.fullmatch(part)
    if number:
        return int(number[1])
    found = _SLICE.fullmatch(part)
    if not found:
        raise _refused(text, f"{part.strip()!r} is no number, slice or ellipsis")
    start, stop, step = (None if bound is None else int(bound) for bound in found.groups())
    if step is not None and step < 1:
        raise _refused(text, f"the step {step} is below 1")
    return slice(start, stop, step)


def _refused(text: str, why: str) -> BadRequest:
    shown = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return BadRequest(
        f"{shown!r} is no index: {why}",
        hint="give whole numbers, slices and one ellipsis, such as [:, -1, ...]",
        field="index",
    )
