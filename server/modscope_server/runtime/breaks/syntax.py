"""The syntax tree of a condition. Numbers and truths are kinds of their own: none stands for the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "Arithmetic",
    "Comparison",
    "Junction",
    "Metric",
    "Negative",
    "Node",
    "Not",
    "Number",
    "NumberNode",
    "Origin",
    "Statistic",
    "Step",
    "TruthNode",
    "leaves",
    "looks_at_hooks",
]

Origin = Literal["value", "grad", "forward_pre", "forward", "backward_pre", "backward"]
"""Of what a statistic is: parameters, their gradients, or what passes a hook of modules."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number that was written out."""

    value: float


@dataclass(frozen=True, slots=True)
class Step:
    """The number of completed iterations."""


@dataclass(frozen=True, slots=True)
class Metric:
    """The last value of a reported scalar."""

    name: str


@dataclass(frozen=True, slots=True)
class Statistic:
    """A statistic of all selected tensors together."""

    origin: Origin
    name: str
    """A field of StatsRecord."""
    selector: str
    """A glob, perhaps behind the name of a model and a slash."""

    def __str__(self) -> str:
        hook = "" if self.origin in ("value", "grad") else f"{self.origin}:"
        return f"{'grad.' if self.origin == 'grad' else ''}{self.name}({hook}{self.selector})"


@dataclass(frozen=True, slots=True)
class Negative:
    """A number with its sign turned."""

    operand: NumberNode


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Operators of one rank, from the left to the right."""

    first: NumberNode
    rest: tuple[tuple[str, NumberNode], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A chain: each number compared with the next, all of them true."""

    first: NumberNode
    rest: tuple[tuple[str, NumberNode], ...]


@dataclass(frozen=True, slots=True)
class Not:
    """True where its operand is false."""

    operand: TruthNode


@dataclass(frozen=True, slots=True)
class Junction:
    """All of them true, or any."""

    word: str
    """`and` or `or`."""
    parts: tuple[TruthNode, ...]


NumberNode: TypeAlias = Number | Step | Metric | Statistic | Negative | Arithmetic
TruthNode: TypeAlias = Comparison | Not | Junction
Node: TypeAlias = NumberNode | TruthNode


def looks_at_hooks(condition: TruthNode) -> bool:
    """Whether hooks on modules are needed to tell whether it holds."""
    return any(
        isinstance(leaf, Statistic) and leaf.origin not in ("value", "grad") for leaf in leaves(condition)
    )


def leaves(node: Node) -> Iterator[Number | Step | Metric | Statistic]:
    """What a condition is made of, from the left to the right."""
    if isinstance(node, (Negative, Not)):
        yield from leaves(node.operand)
    elif isinstance(node, (Arithmetic, Comparison)):
        yield from leaves(node.first)
        for _, operand in node.rest:
            yield from leaves(operand)
    elif isinstance(node, Junction):
        for part in node.parts:
            yield from leaves(part)
    else:
        yield node
