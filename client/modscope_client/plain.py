"""Records in plain terms, and as JSON on one line: the same field names, non-finite numbers as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from modscope.tensor import TensorData

__all__ = ["array_values", "json_line", "plain"]

_NEVER_SHOWN = frozenset({"token", "viewer_token"})
_SHOWN_WHEN_SET = frozenset({"repr"})


def plain(value: Any) -> Any:
    """The value in terms of dict, list, str, int, float, bool and None, ready for JSON.

    Records become dicts of their fields, without secrets; arrays become nested lists; nan and the
    infinities become "NaN", "Infinity" and "-Infinity".
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return _finite_or_text(value)
    if isinstance(value, TensorData) or hasattr(value, "__array__"):
        return array_values(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _record(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


def _record(record: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field in fields(record):
        item = getattr(record, field.name)
        if field.name in _NEVER_SHOWN or (item is None and field.name in _SHOWN_WHEN_SET):
            continue
        out[field.name] = plain(item)
    return out


def _finite_or_text(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def array_values(array: Any) -> Any:
    """The elements of an array as nested lists (a bare number for 0 dimensions).

    A complex element is [real, imaginary]. A tensor whose dtype numpy cannot hold is its bytes in
    base64.
    """
    if isinstance(array, TensorData):
        import base64

        return base64.b64encode(array.data).decode("ascii")
    import numpy

    if array.dtype.kind == "c":
        array = numpy.stack((array.real, array.imag), axis=-1)
    if array.dtype.kind in "biu":
        return array.tolist()
    floats = array if array.dtype.kind == "f" else array.astype(numpy.float32)
    if bool(numpy.isfinite(floats).all()):
        return floats.tolist()
    texts = floats.astype(object, order="C")
    flat = texts.reshape(-1)
    for position in numpy.flatnonzero(~numpy.isfinite(floats)):
        flat[position] = _finite_or_text(float(flat[position]))
    return texts.tolist()


def json_line(value: Any) -> str:
    """A JSON document on one line, ending in a newline."""
    return json.dumps(plain(value), allow_nan=False) + "\n"
