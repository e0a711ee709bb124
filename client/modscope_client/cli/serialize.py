"""Records as JSON and YAML: the same field names, nothing cut, non-finite numbers as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from modscope.tensor import TensorData
from modscope_client.plain import array_values, json_line, plain

__all__ = ["array_values", "json_line", "json_text", "plain", "tensor_document", "yaml_text"]


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
