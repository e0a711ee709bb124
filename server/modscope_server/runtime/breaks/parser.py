"""From the text of a condition to its syntax tree: a Pratt parser that knows numbers from truths."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from modscope.paths import BadGlob, compile_glob
from modscope_server.errors import BadExpression
from modscope_server.runtime.breaks.syntax import (
    Arithmetic,
    Comparison,
    Junction,
    Metric,
    Negative,
    Node,
    Not,
    Number,
    Origin,
    Statistic,
    Step,
    TruthNode,
)
from modscope_server.runtime.breaks.tokens import KEYWORDS, Token, bad, tokens

__all__ = ["STATISTICS", "parse"]

STATISTICS = ("count", "mean", "std", "min", "max", "norm", "zeros", "nan", "inf")
_LONGEST = 2000
_DEEPEST = 40
_TRUTHS = (Comparison, Not, Junction)
_FUNCTIONS = f"the functions are {', '.join(STATISTICS)}, each also as grad.NAME"


class _Rank(NamedTuple):
    """Operators that bind alike; those of a higher power bind tighter."""

    power: int
    takes: str
    """What its operands are: "number" or "truth"."""
    operators: tuple[str, ...]


_RANKS = (
    _Rank(1, "truth", ("or",)),
    _Rank(2, "truth", ("and",)),
    _Rank(4, "number", ("<", "<=", ">", ">=", "==", "!=")),
    _Rank(5, "number", ("+", "-")),
    _Rank(6, "number", ("*", "/")),
)
_NOT = _Rank(3, "truth", ("not",))
_SIGN = _Rank(7, "number", ("-", "+"))
_INFIX = {operator: rank for rank in _RANKS for operator in rank.operators}
_COMPARES = _INFIX["<"]


class _Operand(NamedTuple):
    node: Any
    column: int
    """Where it begins in the text."""


def parse(text: str) -> TruthNode:
    """The condition that the text says. Raises BadExpression, which points at the place."""
    if len(text) > _LONGEST:
        raise BadExpression(
            f"the expression has {len(text):,} characters, and {_LONGEST:,} are admitted",
            hint="set several breaks",
            field="expression",
        )
    return _Parser(text).condition()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokens(text)
        self._next = next(self._tokens)
        self._depth = 0

    def condition(self) -> TruthNode:
        """The whole text."""
        operand = self._expression(0)
        if self._next.kind != "end":
            raise self._unexpected("an operator or the end")
        return cast("TruthNode", self._checked(operand, "truth"))

    def _expression(self, power: int) -> _Operand:
        """What binds tighter than `power`."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._bad(self._next, f"more than {_DEEPEST} levels deep", "set several breaks")
        left = self._prefix()
        while (rank := self._rank()) is not None and rank.power > power:
            left = self._infix(left, rank)
        self._depth -= 1
        return left

    def _infix(self, first: _Operand, rank: _Rank) -> _Operand:
        """All that the operators of one rank join; they are no deeper than one of them."""
        self._checked(first, rank.takes)
        rest: list[tuple[str, Any]] = []
        while self._rank() is rank:
            operator = self._take().text
            operand = self._expression(rank.power)
            rest.append((operator, self._checked(operand, rank.takes)))
        node: Node
        if rank.takes == "truth":
            node = Junction(rank.operators[0], (first.node, *(operand for _, operand in rest)))
        elif rank is _COMPARES:
            node = Comparison(first.node, tuple(rest))
        else:
            node = Arithmetic(first.node, tuple(rest))
        return _Operand(node, first.column)

    def _prefix(self) -> _Operand:
        token = self._take()
        column = token.column
        if token.kind == "number":
            return _Operand(Number(float(token.text)), column)
        if token.kind == "quoted":
            return _Operand(self._metric(token), column)
        if token.kind == "call":
            return _Operand(self._statistic(token), column)
        if token.text == "not":
            return _Operand(Not(self._checked(self._expression(_NOT.power), "truth")), column)
        if token.kind == "name" and token.text not in KEYWORDS:
            return _Operand(_named(token.text), column)
        if token.kind == "operator" and token.text in _SIGN.operators:
            operand = self._checked(self._expression(_SIGN.power), "number")
            return _Operand(Negative(operand) if token.text == "-" else operand, column)
        if token.kind == "operator" and token.text == "(":
            inner = self._expression(0)
            if self._next.text != ")" or self._next.kind != "operator":
                raise self._unexpected("an operator or the closing parenthesis")
            self._take()
            return _Operand(inner.node, column)
        raise self._unexpected("a number, a name or an opening parenthesis", token)

    def _metric(self, token: Token) -> Metric:
        if not token.text:
            raise self._bad(token, "a metric has a name", "write the name that scope.step is given")
        return Metric(token.text)

    def _statistic(self, token: Token) -> Statistic:
        gradient, _, name = token.text.rpartition(".")
        if name not in STATISTICS or gradient not in ("", "grad"):
            raise self._bad(token, f"there is no function {token.text!r}", _FUNCTIONS)
        if gradient and token.hook:
            raise self._bad(
                token,
                "grad. is of parameters, which have no hook",
                "for gradients at modules write backward_pre: or backward: without grad.",
            )
        where = Token("quoted", token.glob, token.glob_column)
        if not token.glob:
            raise self._bad(where, "a selector is missing", f"write {token.text}(*) for all")
        try:
            compile_glob(token.glob)
        except BadGlob as error:
            raise self._bad(where, str(error), "a backslash before a character takes its meaning") from None
        origin = gradient or token.hook or "value"
        return Statistic(cast("Origin", origin), name, token.glob)

    def _rank(self) -> _Rank | None:
        """The rank of the operator that comes next; None where none comes."""
        if self._next.kind not in ("operator", "name"):
            return None
        return _INFIX.get(self._next.text)

    def _checked(self, operand: _Operand, wanted: str) -> Any:
        """The operand's node, where it is what is wanted."""
        found = "truth" if isinstance(operand.node, _TRUTHS) else "number"
        if found == wanted:
            return operand.node
        if wanted == "truth":
            what, hint = "a number is no condition", "compare it, as in: loss > 10"
        else:
            what, hint = "a condition is no number", "compare numbers, and join conditions with and, or, not"
        raise bad(self._text, operand.column, what, hint)

    def _take(self) -> Token:
        token = self._next
        if token.kind != "end":
            self._next = next(self._tokens)
        return token

    def _unexpected(self, wanted: str, token: Token | None = None) -> BadExpression:
        token = token or self._next
        found = "the end" if token.kind == "end" else repr(self._text[token.column :][: len(token.text) or 1])
        return self._bad(
            token, f"expected {wanted}, found {found}", "an example: loss != loss or step == 500"
        )

    def _bad(self, token: Token, what: str, hint: str) -> BadExpression:
        return bad(self._text, token.column, what, hint)


def _named(name: str) -> Number | Step | Metric:
    if name in ("inf", "nan"):
        return Number(float(name))
    return Step() if name == "step" else Metric(name)
