"""The table of bad calls: each as the client and as the CLI make it, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import nn

from modscope.tensor import TensorData
from modscope_client.errors import FailedPrecondition, InvalidArgument, ModscopeError, NotFound
from modscope_client.handles import RemoteModel

__all__ = ["MUTATIONS", "ROWS", "Row", "Small"]


class Small(nn.Module):
    """Two Linear layers and a normalisation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.norm(self.first(x)))
        return y


@dataclass(frozen=True)
class Row:
    """A bad call, as the client and as the CLI make it, and what must come of it."""

    name: str
    call: Callable[[RemoteModel], Any]
    arguments: tuple[str, ...]
    error: type[ModscopeError]
    reason: str
    exit_code: int
    told: str
    """Part of the message: the value that was wrong, or what would do."""


ROWS = [
    Row("module path", lambda m: m.children("norn"), ("ls", "norn"), NotFound, "UNKNOWN_PATH", 3, "norn"),
    Row("read path", lambda m: m.read("a.b"), ("get", "a.b"), NotFound, "UNKNOWN_PATH", 3, "a.b"),
    Row(
        "write path",
        lambda m: m.write("a.b", fill=0.0),
        ("set", "a.b", "--fill", "0"),
        NotFound,
        "UNKNOWN_PATH",
        3,
        "a.b",
    ),
    Row(
        "property",
        lambda m: m.read("first.in_features"),
        ("get", "first.in_features"),
        NotFound,
        "UNKNOWN_PATH",
        3,
        "in_features",
    ),
    Row(
        "freeze nothing",
        lambda m: m.freeze("nope.*"),
        ("freeze", "nope.*"),
        NotFound,
        "NO_MATCH",
        3,
        "nope.*",
    ),
    Row(
        "unfreeze nothing",
        lambda m: m.unfreeze("nope.*"),
        ("unfreeze", "nope.*"),
        NotFound,
        "NO_MATCH",
        3,
        "nope.*",
    ),
    Row(
        "unknown type",
        lambda m: m.freeze("*", type="Embedding"),
        ("freeze", "*", "--type", "Embedding"),
        NotFound,
        "NO_MATCH",
        3,
        "Embedding",
    ),
    Row(
        "reinit nothing",
        lambda m: m.reinitialize("nope", scheme="zeros_"),
        ("reinit", "nope", "--scheme", "zeros_"),
        NotFound,
        "NO_MATCH",
        3,
        "nope",
    ),
    Row(
        "watch nothing",
        lambda m: m.watch("nope").__enter__(),
        ("watch", "nope", "--count", "1"),
        NotFound,
        "NO_MATCH",
        3,
        "nope",
    ),
    Row(
        "glob of a listing",
        lambda m: m.modules("first["),
        ("modules", "first["),
        InvalidArgument,
        "BAD_GLOB",
        5,
        "first[",
    ),
    Row(
        "glob of parameters",
        lambda m: m.parameters("{a"),
        ("params", "{a"),
        InvalidArgument,
        "BAD_GLOB",
        5,
        "{a",
    ),
    Row(
        "glob of a freeze",
        lambda m: m.freeze("[z-a]"),
        ("freeze", "[z-a]"),
        InvalidArgument,
        "BAD_GLOB",
        5,
        "z-a",
    ),
    Row(
        "unknown scheme",
        lambda m: m.reinitialize("*", scheme="nope_"),
        ("reinit", "*", "--scheme", "nope_"),
        InvalidArgument,
        "UNKNOWN_SCHEME",
        5,
        "nope_",
    ),
    Row(
        "dangerous scheme",
        lambda m: m.reinitialize("*", scheme="__import__"),
        ("reinit", "*", "--scheme", "__import__"),
        InvalidArgument,
        "UNKNOWN_SCHEME",
        5,
        "__import__",
    ),
    Row(
        "scheme for a bias",
        lambda m: m.reinitialize("*", type="Linear", scheme="kaiming_uniform_"),
        ("reinit", "*", "--type", "Linear", "--scheme", "kaiming_uniform_"),
        InvalidArgument,
        "SCHEME_UNSUITABLE",
        5,
        "bias",
    ),
    Row(
        "argument of a scheme",
        lambda m: m.reinitialize("*", type="Linear", scheme="normal_", sigma=1.0),
        ("reinit", "*", "--type", "Linear", "--scheme", "normal_", "--arg", "sigma=1.0"),
        InvalidArgument,
        "BAD_REQUEST",
        5,
        "sigma",
    ),
    Row(
        "shape",
        lambda m: m.write("first.weight", numpy.zeros((4, 3), "float32")),
        ("set", "first.weight", "--value", "[[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]"),
        InvalidArgument,
        "SHAPE_MISMATCH",
        5,
        "[3, 4]",
    ),
    Row(
        "shape that would broadcast",
        lambda m: m.write("first.weight", numpy.zeros(4, "float32")),
        ("set", "first.weight", "--value", "[0, 0, 0, 0]"),
        InvalidArgument,
        "SHAPE_MISMATCH",
        5,
        "[3, 4]",
    ),
    Row(
        "dtype",
        lambda m: m.write("last.bias", numpy.zeros(2, "float64")),
        ("set", "last.bias", "--from", "f64.npy"),
        InvalidArgument,
        "DTYPE_MISMATCH",
        5,
        "float64",
    ),
    Row(
        "unknown dtype",
        lambda m: m.write("last.bias", TensorData("float128", (2,), bytes(32))),
        ("set", "last.bias", "--from", "f128.npy"),
        InvalidArgument,
        "UNKNOWN_DTYPE",
        5,
        "float128",
    ),
    Row(
        "not finite",
        lambda m: m.write("last.bias", numpy.array([1.0, numpy.nan], "float32")),
        ("set", "last.bias", "--from", "nan.npy"),
        InvalidArgument,
        "NOT_FINITE",
        5,
        "last.bias",
    ),
    Row(
        "finite no longer",
        lambda m: m.write("last.bias", numpy.array([1.0, 1e300]), cast=True),
        ("set", "last.bias", "--from", "huge.npy", "--cast"),
        InvalidArgument,
        "NOT_FINITE",
        5,
        "last.bias",
    ),
    Row(
        "no gradient",
        lambda m: m.read("last.bias", what="grad"),
        ("get", "last.bias", "--what", "grad"),
        FailedPrecondition,
        "NO_GRAD",
        5,
        "last.bias",
    ),
    Row(
        "keys",
        lambda m: m.load_state_dict({"first.weight": numpy.zeros((3, 4), "float32")}),
        ("state", "load", "part.safetensors"),
        FailedPrecondition,
        "KEYS_MISMATCH",
        5,
        "last.bias",
    ),
    Row(
        "freeze all",
        lambda m: m.freeze("*"),
        ("freeze", "*"),
        FailedPrecondition,
        "WOULD_BREAK_TRAINING",
        5,
        "",
    ),
    Row(
        "forward that raises",
        lambda m: m.forward(numpy.zeros((2, 5), "float32")),
        ("forward", "--input", "wide.npy"),
        InvalidArgument,
        "FORWARD_RAISED",
        5,
        "2x5",
    ),
]

MUTATIONS: list[tuple[Callable[[RemoteModel], Any], tuple[str, ...]]] = [
    (lambda m: m.write("last.bias", fill=1.0), ("set", "last.bias", "--fill", "1")),
    (lambda m: m.freeze("first"), ("freeze", "first")),
    (lambda m: m.unfreeze("*"), ("unfreeze", "*")),
    (lambda m: m.reinitialize("*"), ("reinit", "*")),
    (lambda m: m.load_state_dict({}, strict=False), ("state", "load", "part.safetensors", "--no-strict")),
]
"""Each mutating call, valid but for who makes it."""
