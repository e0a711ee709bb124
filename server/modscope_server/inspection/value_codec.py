"""Python values as JSON and back, exactly; tensors as rows of a table. Nothing is pickled.

None, bools, whole numbers, text, lists and finite floats stand for themselves; any other kind is an object
whose one "is" names it. What has no kind, such as a function, becomes "lost": where it is decoded, what
stands there now is left.
"""

from __future__ import annotations

import base64
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy
import torch

from modscope_server.inspection.tensor_table import Collector, Thaw
from modscope_server.inspection.tensors import dtype_named, unreadable_reason

__all__ = ["LEFT", "Encoder", "Json", "decode"]

Json: TypeAlias = Any
"""What json writes."""

LEFT = object()
"""What `decode` gives for something that was lost and of which nothing stands there now."""

_DEPTH = 200
_DICTS: dict[str, type] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": Counter,
    "defaultdict": defaultdict,
}
_FACTORIES: dict[str, type] = {kind.__name__: kind for kind in (dict, float, int, list, set, str)}
_ROWS: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset, "Size": torch.Size}


class Encoder:
    """Makes JSON of values, and has their tensors collected.

    Args:
        collector: takes the tensors in.
    """

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.lost: dict[str, str] = {}
        """What could not be taken along, by where it was: what it is."""

    def encode(self, value: Any, name: str, depth: int = 0) -> Json:
        """A value; `name` says where it is, for its tensors and for what is lost."""
        cls = type(value)
        if value is None or cls in (bool, int, str):
            return value
        if cls is float:
            return value if math.isfinite(value) else {"is": "float", "text": repr(value)}
        if depth > _DEPTH:
            return self._lost(name, "something that holds itself")
        if cls is list:
            return self._items(value, name, depth)
        for kind, row in _ROWS.items():
            if cls is row:
                return {"is": kind, "items": self._items(value, name, depth)}
        for kind, mapping in _DICTS.items():
            if cls is mapping:
                return self._mapping(value, kind, name, depth)
        if isinstance(value, torch.Tensor):
            return self.tensor(value, name)
        return self._rest(value, cls, name, depth)

    def tensor(self, tensor: torch.Tensor, name: str) -> Json:
        """A tensor, where it is dense or sparse (COO)."""
        if tensor.layout is torch.sparse_coo and not tensor.is_meta:
            parts = (tensor._indices(), tensor._values())
            rows = [
                self.tensor(part, f"{name}/{what}")
                for part, what in zip(parts, ("indices", "values"), strict=True)
            ]
            shape, coalesced = list(tensor.shape), tensor.is_coalesced()
            return {"is": "sparse", "parts": rows, "shape": shape, "coalesced": coalesced}
        reason = unreadable_reason(tensor)
        if reason:
            return self._lost(name, f"a tensor that is {reason}")
        node = {"is": "tensor", "row": self.collector.add(tensor, name)}
        if tensor.requires_grad and tensor.is_leaf:
            node["requires_grad"] = True
        if isinstance(tensor, torch.nn.Parameter):
            node["parameter"] = True
        return node

    def _items(self, values: Any, name: str, depth: int) -> list[Json]:
        return [self.encode(item, f"{name}/{at}", depth + 1) for at, item in enumerate(list(values))]

    def _mapping(self, value: Any, kind: str, name: str, depth: int) -> Json:
        node: dict[str, Json] = {"is": kind}
        if kind == "defaultdict":
            factory = value.default_factory
            if factory is not None and _FACTORIES.get(factory.__name__) is not factory:
                return self._lost(name, "a defaultdict with a factory of its own")
            node["factory"] = None if factory is None else factory.__name__
        node["items"] = [
            [self.encode(key, f"{name}/key", depth + 1), self.encode(item, f"{name}/{key}", depth + 1)]
            for key, item in list(value.items())
        ]
        return node

    def _rest(self, value: Any, cls: type, name: str, depth: int) -> Json:
        if cls is complex:
            return {"is": "complex", "items": [self.encode(part, name) for part in (value.real, value.imag)]}
        if cls in (bytes, bytearray):
            return {"is": cls.__name__, "base64": base64.b64encode(value).decode()}
        if cls is deque:
            return {"is": "deque", "items": self._items(value, name, depth), "maxlen": value.maxlen}
        if cls is torch.dtype:
            return {"is": "dtype", "text": str(value).removeprefix("torch.")}
        if cls is torch.device:
            return {"is": "device", "text": str(value)}
        if (
            isinstance(value, (numpy.ndarray, numpy.generic))
            and not value.dtype.hasobject
            and not value.dtype.names
        ):
            raw = base64.b64encode(numpy.ascontiguousarray(value).tobytes()).decode()
            shape = list(value.shape) if isinstance(value, numpy.ndarray) else None
            return {"is": "numpy", "dtype": value.dtype.str, "shape": shape, "base64": raw}
        return self._lost(name, _described(value))

    def _lost(self, name: str, what: str) -> Json:
        self.lost[name] = what
        return {"is": "lost", "what": what}


def decode(
    node: Json,
    thaw: Thaw,
    now: Any = None,
    device: Callable[[str], str | torch.device] = lambda device: device,
) -> Any:
    """The value of a node, made anew.

    Args:
        node: what `Encoder.encode` gave.
        thaw: makes the tensors.
        now: what stands there at present, from which comes what was lost.
        device: where a tensor belongs that lived on the given device.

    Raises ValueError for what no encoder made.
    """
    if isinstance(node, list):
        before = now if isinstance(now, (list, tuple)) and len(now) == len(node) else [None] * len(node)
        return [_or_none(decode(item, thaw, old, device)) for item, old in zip(node, before, strict=True)]
    if not isinstance(node, dict):
        return node
    kind = node.get("is")
    if kind == "lost":
        return LEFT if now is None else now
    if kind in _ROWS:
        return _ROWS[kind](decode(node["items"], thaw, now, device))
    if kind in _DICTS:
        return _decode_mapping(node, thaw, now if isinstance(now, dict) else {}, device)
    if kind == "tensor":
        tensor = thaw.tensor(node["row"], device(thaw.device(node["row"])))
        if node.get("parameter"):
            return torch.nn.Parameter(tensor, requires_grad=bool(node.get("requires_grad")))
        return tensor.detach().requires_grad_() if node.get("requires_grad") else tensor
    if kind == "sparse":
        indices, values = (decode(part, thaw, None, device) for part in node["parts"])
        return torch.sparse_coo_tensor(
            indices, values, node["shape"], is_coalesced=node["coalesced"], check_invariants=True
        )
    return _decode_rest(node, thaw, device)


def _decode_mapping(node: Json, thaw: Thaw, now: dict[Any, Any], device: Any) -> Any:
    made: Any = _DICTS[node["is"]]()
    if node["is"] == "defaultdict" and node["factory"] is not None:
        made = defaultdict(_FACTORIES[node["factory"]])
    for key_node, item_node in node["items"]:
        key = decode(key_node, thaw)
        value = decode(item_node, thaw, now.get(key), device)
        if value is not LEFT:
            made[key] = value
    return made


def _decode_rest(node: Json, thaw: Thaw, device: Any) -> Any:
    kind = node.get("is")
    if kind == "float":
        return float(node["text"])
    if kind == "complex":
        return complex(*decode(node["items"], thaw))
    if kind in ("bytes", "bytearray"):
        raw = base64.b64decode(node["base64"])
        return raw if kind == "bytes" else bytearray(raw)
    if kind == "deque":
        return deque(decode(node["items"], thaw, None, device), node["maxlen"])
    if kind == "dtype":
        return dtype_named(node["text"])
    if kind == "device":
        return torch.device(node["text"])
    if kind == "numpy":
        array = numpy.frombuffer(base64.b64decode(node["base64"]), numpy.dtype(node["dtype"])).copy()
        return array[0] if node["shape"] is None else array.reshape(node["shape"])
    raise ValueError(f"{kind!r} is no kind of value")


def _or_none(value: Any) -> Any:
    return None if value is LEFT else value


def _described(value: Any) -> str:
    if callable(value) and hasattr(value, "__qualname__"):
        return f"the function {value.__qualname__}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"
