"""Records as JSON and YAML: the same field names, nothing cut, non-finite numbers as text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from modscope.tensor import TensorData

__all__ = ["array_values", "json_line", "json_text", "plain", "tensor_document", "yaml_text"]

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


def tensor_document(array: Any, **more: Any) -> dict[str, Any]:
    """A tensor for JSON: dtype, shape, what `more` says, and value."""
    dtype = array.dtype if isinstance(array, TensorData) else array.dtype.name
    return {"dtype": dtype, "shape": list(array.shape), **more, "value": array_values(array)}


def json_text(value: Any) -> str:
    """A JSON document for people and tools, ending in a newline: indented, a list of numbers on one line."""
    return "".join(_indented(plain(value), "\n")) + "\n"


def _indented(value: Any, line: str) -> Iterator[str]:
    """The pieces of a document; `line` is a newline and the indentation of the line it begins on."""
    below = f"{line}  "
    separator = below
    if isinstance(value, dict) and value:
        yield "{"
        for key, item in value.items():
            yield f"{separator}{json.dumps(key)}: "
            yield from _indented(item, below)
            separator = f",{below}"
        yield f"{line}}}"
    elif isinstance(value, list) and _holds_containers(value):
        yield "["
        for item in value:
            yield separator
            yield from _indented(item, below)
            separator = f",{below}"
        yield f"{line}]"
    else:
        yield json.dumps(value, allow_nan=False)


def _holds_containers(values: list[Any]) -> bool:
    return any(isinstance(value, (list, dict)) for value in values)


def json_line(value: Any) -> str:
    """A JSON document on one line, ending in a newline."""
    return json.dumps(plain(value), allow_nan=False) + "\n"


def yaml_text(value: Any) -> str:
    """A YAML document, ending in a newline; a list of numbers on one line."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        """Writes a list that holds no containers in square brackets."""

        def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
            return super().represent_sequence(tag, sequence, flow_style=not _holds_containers(sequence))

        def ignore_aliases(self, data: Any) -> bool:
            return True

    text: str = yaml.dump(plain(value), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=2**20)
    return text
