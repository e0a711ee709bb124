"""The modules of the zoo: each has one habit that a listing, a read or a hook has to cope with."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "MLP",
    "Buffers",
    "Containers",
    "Dtypes",
    "Head",
    "HeadOfLinear",
    "KwargsOnly",
    "MultiOutput",
    "Nested",
    "Outcome",
    "Parametrized",
    "Pieces",
    "Rude",
    "ScriptedParts",
    "Shared",
    "Tied",
    "frozen",
    "lazy",
    "on_meta",
    "scripted",
    "traced",
    "unreadable",
]


class MLP(nn.Module):
    """The tour's MLP: three Linear layers w1, w2, w3 with relu between them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        first, second, third, last = sizes or (1, 3, 3, 1)
        self.w1 = nn.Linear(first, second)
        self.w2 = nn.Linear(second, third)
        self.w3 = nn.Linear(third, last)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w3(F.relu(self.w2(F.relu(self.w1(x)))))
        return out


class Head(nn.Module):
    """The tour's HEAD: an MLP whose output is overwritten by two bare parameters, so it never learns."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP()
        self.w = nn.Parameter(torch.randn(1))
        self.b = nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.mlp(x)
        out = self.w * x + self.b
        return out


class HeadOfLinear(nn.Module):
    """The tour's second HEAD: an MLP and a Linear(1, 1) w after it."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP()
        self.w = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w(self.mlp(x))
        return out


class Tied(nn.Module):
    """An embedding and a decoder with one weight, beside a decoder's bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 7)
        self.decode.weight = self.embed.weight
        self.mirror = nn.ModuleDict({"decode": nn.Linear(4, 7, bias=False)})
        self.mirror["decode"].weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.body(self.embed(tokens))
        out: Tensor = self.decode(hidden) + self.mirror["decode"](hidden)
        return out


class Shared(nn.Module):
    """One block that stands at three places, one of them inside another module, and one shared ReLU."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        block = nn.Sequential(nn.Linear(4, 4), act)
        self.first = block
        self.again = block
        self.inside = nn.ModuleDict({"block": block, "own": nn.Linear(4, 4), "act": act})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inside["own"](self.inside["block"](self.again(self.first(x))))
        return out


class Nested(nn.Module):
    """A module in a module in a module; each level has a bias of its own."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1))
        self.inner = Nested(depth - 1) if depth else nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + self.bias
        return out


class Buffers(nn.Module):
    """Batch norm's buffers, others: non-persistent, None, 0-dim, empty, bool."""

    steps: Tensor
    mask: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("steps", torch.tensor(3, dtype=torch.int64))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("nothing", None)
        self.register_buffer("empty", torch.zeros(0, 5))
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x)) * self.mask[:, None, None] + self.table[:, None, None]
        return out


@dataclass
class Outcome:
    """An output of the kind that models give as a dataclass."""

    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class Pieces(nn.Module):
    """Gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], None]:
        out, state = self.lstm(x)
        return out, state, None


class MultiOutput(nn.Module):
    """Gives a dict of a dataclass, a list and None; a tuple comes out of a child."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = Pieces()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        out, state, _ = self.pieces(x)
        outcome = Outcome(self.head(out), state)
        return {"outcome": outcome, "both": [out, out.sum()], "none": None, "count": 2}


class KwargsOnly(nn.Module):
    """Takes keyword arguments alone, one of them optional."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 2)
        self.right = nn.Linear(3, 2)

    def forward(self, *, left: Tensor, right: Tensor, scale: Tensor | None = None) -> Tensor:
        out: Tensor = self.left(left) + self.right(right)
        return out if scale is None else out * scale


class Containers(nn.Module):
    """ParameterList, ParameterDict, ModuleList and ModuleDict, with keys that look like other things."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.randn(3), torch.randn(3)])
        self.named = nn.ParameterDict(
            {"a/b": torch.randn(3), "with space": torch.randn(3), "0": torch.randn(3)}
        )
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Identity()])
        self.by_name = nn.ModuleDict(
            {"keys*": nn.Linear(3, 3), "größe": nn.Linear(3, 3), "line\nbreak": nn.ReLU()}
        )
        self.absent: nn.Module | None
        self.register_module("absent", None)
        self.register_parameter("missing", None)

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scales:
            x = x * scale
        for key in self.named:
            x = x + self.named[key]
        for layer in (*self.layers, *self.by_name.values()):
            x = layer(x)
        return x


class Parametrized(nn.Module):
    """Weights that are computed; reading the old spectral_norm's in training mode changes a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
        self.spun = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
        self.bounded = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2))
        self.old = nn.utils.spectral_norm(nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.old(self.bounded(self.spun(self.normed(x))))
        return out


class Dtypes(nn.Module):
    """Buffers of every dtype that holds plain elements, and parameters that are 0-dim, empty and complex."""

    names = (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
        *("float8_e5m2fnuz", "float8_e8m0fnu", "complex64", "complex128", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64", "bool"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.turn = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        for name in self.names:
            size = getattr(torch, name).itemsize * 6
            raw = (
                torch.arange(size, dtype=torch.uint8) % 2
                if name == "bool"
                else torch.arange(64, 64 + size).byte()
            )
            self.register_buffer(f"as_{name}", raw.view(getattr(torch, name)).reshape(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Rude(nn.Module):
    """Its repr and a property raise, and it overrides __getattr__ to be of no help."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(2, 2)

    @property
    def weight(self) -> NoReturn:
        """A property that must never be run by a listing."""
        raise RuntimeError("weight is not to be read")

    def __repr__(self) -> str:
        raise RuntimeError("no repr today")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fine(x)
        return out


class ScriptedParts(nn.Module):
    """What `scripted` scripts: a child, a buffer and a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("offset", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(self.b(x))) + self.offset


def frozen() -> nn.Module:
    """An MLP whose first two layers are frozen, the second but for its bias."""
    model = MLP()
    model.w1.requires_grad_(False)
    model.w2.weight.requires_grad_(False)
    return model


def lazy() -> nn.Module:
    """Layers that get their shapes when the model first runs."""
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))


def on_meta() -> nn.Module:
    """A model without data."""
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def unreadable() -> nn.Module:
    """Tensors without plain bytes: lazy, meta, sparse, nested and quantised, beside one that has them."""
    module = nn.Module()
    module.plain = nn.Parameter(torch.ones(2))
    module.lazy = nn.UninitializedParameter()
    module.meta = nn.Parameter(torch.ones(2, 3, device="meta"))
    module.sparse = nn.Parameter(torch.eye(3).to_sparse())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype, quantised ones are going away
        module.register_buffer("nested", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
        module.register_buffer("quantized", torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8))
    return module


def scripted() -> nn.Module:
    """A model compiled by torch.jit.script."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: nn.Module = torch.jit.script(ScriptedParts())
        return module


def traced() -> nn.Module:
    """A module compiled by torch.jit.trace, inside one that is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return nn.Sequential(nn.Linear(3, 3), torch.jit.trace(ScriptedParts(), torch.ones(1, 3)))
