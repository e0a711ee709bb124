"""Whether a condition holds. Three answers: yes, no, and None where something in it is not known."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Protocol

from modscope_server.runtime.breaks.syntax import (
    Arithmetic,
    Comparison,
    Metric,
    Negative,
    Not,
    Number,
    NumberNode,
    Statistic,
    Step,
    TruthNode,
)

__all__ = ["Sources", "evaluate"]


class Sources(Protocol):
    """Where the numbers come from; None for one that is not known."""

    @property
    def step(self) -> int: ...
    def metric(self, name: str) -> float | None: ...
    def statistic(self, statistic: Statistic) -> float | None: ...


def evaluate(node: TruthNode, sources: Sources) -> bool | None:
    """Whether the condition is true; None where that turns on what is not known."""
    if isinstance(node, Comparison):
        return _compare(node, sources)
    if isinstance(node, Not):
        inner = evaluate(node.operand, sources)
        return None if inner is None else not inner
    decisive = node.word == "or"
    answer: bool | None = not decisive
    for part in node.parts:
        found = evaluate(part, sources)
        if found is decisive:
            return decisive
        if found is None:
            answer = None
    return answer


def _compare(node: Comparison, sources: Sources) -> bool | None:
    answer: bool | None = True
    left = _number(node.first, sources)
    for sign, operand in node.rest:
        right = _number(operand, sources)
        if left is None or right is None:
            answer = None
        elif not _COMPARE[sign](left, right):
            return False
        left = right
    return answer


def _number(node: NumberNode, sources: Sources) -> float | None:
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Step):
        return float(sources.step)
    if isinstance(node, Metric):
        return sources.metric(node.name)
    if isinstance(node, Statistic):
        return sources.statistic(node)
    if isinstance(node, Negative):
        operand = _number(node.operand, sources)
        return None if operand is None else -operand
    return _arithmetic(node, sources)


def _arithmetic(node: Arithmetic, sources: Sources) -> float | None:
    value = _number(node.first, sources)
    for sign, operand in node.rest:
        right = _number(operand, sources)
        value = None if value is None or right is None else _CALCULATE[sign](value, right)
    return value


def _divide(left: float, right: float) -> float:
    """As IEEE 754 has it, where Python raises."""
    if right:
        return left / right
    if not left or math.isnan(left):
        return math.nan
    return math.copysign(math.inf, left) * math.copysign(1.0, right)


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_CALCULATE: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
}
