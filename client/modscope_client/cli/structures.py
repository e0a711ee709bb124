"""What a model returned: its tensors by name, and the whole as a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modscope.tensor import TensorData
from modscope_client.cli.serialize import plain, tensor_document

__all__ = ["is_tensor", "leaves", "structure_document"]


def is_tensor(value: Any) -> bool:
    """Whether the value is one tensor."""
    return isinstance(value, TensorData) or (hasattr(value, "dtype") and hasattr(value, "shape"))


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """What the containers hold, each with its key: "" for a bare value, "logits", "past.0.1"."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        yield key, value
        return
    for name, item in items:
        yield from leaves(item, f"{key}.{name}" if key else str(name))


def structure_document(value: Any) -> Any:
    """The value for JSON: its containers, each tensor as its dtype, shape and value."""
    if is_tensor(value):
        return tensor_document(value)
    if isinstance(value, Mapping):
        return {str(name): structure_document(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [structure_document(item) for item in value]
    return plain(value)
