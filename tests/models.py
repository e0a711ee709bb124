"""The zoo: small models, each with a habit that a listing, a read or a hook has to cope with.

    for entry in ZOO.values():
        model = entry.build()
        args, kwargs = entry.inputs()
        model(*args, **kwargs)

Nothing is downloaded; transformers is imported when one of its families is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from tests.plain_models import (
    MLP,
    Buffers,
    Containers,
    Dtypes,
    Head,
    HeadOfLinear,
    KwargsOnly,
    MultiOutput,
    Nested,
    Parametrized,
    Rude,
    Shared,
    Tied,
    frozen,
    lazy,
    on_meta,
    scripted,
    traced,
    unreadable,
)
from tests.transformer_models import FAMILIES, Inputs, build_family, family_inputs

__all__ = [
    "FAMILIES",
    "MLP",
    "PLAIN",
    "WRAPPED",
    "ZOO",
    "Entry",
    "Head",
    "HeadOfLinear",
    "unreadable",
    "wide",
]


@dataclass(frozen=True)
class Entry:
    """One animal of the zoo."""

    name: str
    factory: Callable[[], nn.Module]
    """Builds the model; `build` calls it with a fixed seed."""
    inputs: Callable[[], Inputs]
    """Positional and keyword arguments for the model's forward, the same on every call."""
    runs: bool = True
    """Whether its forward can be run."""

    def build(self) -> nn.Module:
        """A new model; always with the same values."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.factory()


def wide(modules: int) -> nn.Module:
    """A model of at least so many modules: blocks of a hundred, ten of them Linear(1, 1)."""
    root = nn.Module()
    for block_number in range(-(-(modules - 1) // 101)):
        block = nn.Module()
        for number in range(10):
            block.add_module(f"fc{number}", nn.Linear(1, 1))
            for other in range(9):
                block.add_module(f"act{number}_{other}", nn.ReLU())
        root.add_module(f"block{block_number}", block)
    return root


def rows(*shape: int) -> Callable[[], Inputs]:
    """Inputs that are one float32 tensor of this shape."""

    def inputs() -> Inputs:
        return (torch.randn(*shape, generator=torch.Generator().manual_seed(1)),), {}

    return inputs


def _kwargs_inputs() -> Inputs:
    left, right = torch.linspace(-1, 1, 6).reshape(2, 3), torch.linspace(1, 2, 6).reshape(2, 3)
    return (), {"left": left, "right": right, "scale": torch.tensor(0.5)}


def _averaged() -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(nn.Sequential(MLP(), nn.BatchNorm1d(1)))


def _compiled() -> nn.Module:
    return cast("nn.Module", torch.compile(nn.Sequential(MLP(), nn.BatchNorm1d(1)), backend="eager"))


def _checkpointed() -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return nn.Sequential(checkpoint_wrapper(MLP()), nn.BatchNorm1d(1))


def _parallel() -> nn.Module:
    return nn.DataParallel(nn.Sequential(MLP(), nn.BatchNorm1d(1)))


def _wrapped_twice() -> nn.Module:
    return nn.DataParallel(_checkpointed())


PLAIN: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("mlp", MLP, rows(4, 1)),
        Entry("head", Head, rows(4, 1)),
        Entry("head_of_linear", HeadOfLinear, rows(4, 1)),
        Entry("tied", Tied, lambda: ((torch.arange(6).reshape(2, 3),), {})),
        Entry("shared", Shared, rows(2, 4)),
        Entry("nested", lambda: Nested(50), rows(2, 3)),
        Entry("frozen", frozen, rows(4, 1)),
        Entry("lazy", lazy, rows(2, 1, 5, 5)),
        Entry("buffers", Buffers, rows(2, 1, 5, 5)),
        Entry("multi_output", MultiOutput, rows(2, 5, 3)),
        Entry("kwargs_only", KwargsOnly, _kwargs_inputs),
        Entry("containers", Containers, rows(2, 3)),
        Entry("parametrized", Parametrized, rows(2, 3)),
        Entry(
            "bf16", lambda: MLP(4, 8, 8, 2).to(torch.bfloat16), lambda: ((torch.ones(2, 4).bfloat16(),), {})
        ),
        Entry("dtypes", Dtypes, rows(2, 3)),
        Entry("rude", Rude, rows(2, 2)),
        Entry("meta", on_meta, rows(2, 3), runs=False),
        Entry("scripted", scripted, rows(2, 3)),
        Entry("traced", traced, rows(1, 3)),
    )
}
"""The models whose paths are PyTorch's own."""

ZOO: dict[str, Entry] = PLAIN | {
    name: Entry(name, lambda name=name: build_family(name), lambda name=name: family_inputs(name))  # type: ignore[misc]
    for name in FAMILIES
}
"""All models whose paths are PyTorch's own, the transformers families included."""

WRAPPED: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("averaged", _averaged, rows(4, 1)),
        Entry("compiled", _compiled, rows(4, 1)),
        Entry("checkpointed", _checkpointed, rows(4, 1)),
        Entry("parallel", _parallel, rows(4, 1)),
        Entry("wrapped_twice", _wrapped_twice, rows(4, 1)),
    )
}
"""nn.Sequential(MLP(), nn.BatchNorm1d(1)) in each of the wrappers whose prefix is left out."""
