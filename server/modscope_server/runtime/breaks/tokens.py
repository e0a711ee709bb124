"""From the text of a condition to its words, and errors that point into the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from modscope_server.errors import BadExpression

__all__ = ["KEYWORDS", "Token", "bad", "tokens"]

KEYWORDS = ("and", "or", "not")
_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NAME = re.compile(r"[^\W\d]\w*(?:\.\w+|/[^\W\d]\w*)*")
_OPERATOR = re.compile(r"<=|>=|==|!=|[-<>+*/()]")
_QUOTED = re.compile(r"""(["'])((?:(?!\1)[^\\]|\\.)*)\1""", re.DOTALL)
_ESCAPED_QUOTE = re.compile(r"""\\(["'\\])""")
_HOOK = re.compile(r"(forward_pre|forward|backward_pre|backward)\s*:\s*")
_GLOB = re.compile(r"(?:[^\\)]|\\.)*", re.DOTALL)
_SHOWN = 60
"""Characters of the text that are shown on either side of a mistake."""
_OTHER_LANGUAGES = {
    "=": "compare with ==",
    "&": "write `and`",
    "|": "write `or`",
    "!": "write `not`, or != to compare",
    "^": "there are + - * / alone",
    "%": "there are + - * / alone",
}


@dataclass(frozen=True, slots=True)
class Token:
    """A word of the text."""

    kind: Literal["number", "name", "quoted", "operator", "call", "end"]
    text: str
    """As it is meant: what stands in quotes without them; of a call, the function's name."""
    column: int
    """Where it begins, from 0."""
    hook: str = ""
    """Of a call: the hook before the colon."""
    glob: str = ""
    """Of a call: the rest of what stands in its parentheses."""
    glob_column: int = 0


def bad(text: str, column: int, what: str, hint: str) -> BadExpression:
    """An error that shows the text with a pointer under the place."""
    begin, end = max(0, column - _SHOWN), column + _SHOWN
    shown = "".join(
        character if character.isprintable() else " " if character.isspace() else "?"
        for character in text[begin:end]
    )
    before, after = "..." if begin else "", "..." if end < len(text) else ""
    pointer = " " * (len(before) + column - begin) + "^"
    return BadExpression(
        f"{what}, at column {column + 1}\n  {before}{shown}{after}\n  {pointer}",
        hint=hint,
        field="expression",
        column=str(column + 1),
    )


def tokens(text: str) -> Iterator[Token]:
    """The words of the text, and one of kind "end". Raises BadExpression."""
    position = _after_space(text, 0)
    while position < len(text):
        token, position = _next(text, position)
        yield token
        position = _after_space(text, position)
    yield Token("end", "", len(text))


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _next(text: str, position: int) -> tuple[Token, int]:
    """The word that begins there, and where it ends."""
    if number := _NUMBER.match(text, position):
        end = number.end()
        if end < len(text) and (text[end].isalnum() or text[end] in "_."):
            raise bad(text, end, "a number goes on as a name", "put a space or an operator between them")
        return Token("number", number.group(), position), end
    if name := _NAME.match(text, position):
        opening = _after_space(text, name.end())
        if name.group() not in KEYWORDS and text[opening : opening + 1] == "(":
            return _call(text, name.group(), position, opening)
        return Token("name", name.group(), position), name.end()
    if operator := _OPERATOR.match(text, position):
        return Token("operator", operator.group(), position), operator.end()
    if text[position] in "\"'":
        content, end = _quoted(text, position)
        return Token("quoted", content, position), end
    hint = _OTHER_LANGUAGES.get(text[position], 'names with other characters go in quotes: "top-5 acc" > 0.9')
    raise bad(text, position, f"{text[position]!r} has no meaning here", hint)


def _quoted(text: str, position: int) -> tuple[str, int]:
    found = _QUOTED.match(text, position)
    if found is None:
        raise bad(text, position, "this quote is never closed", f"end the name with another {text[position]}")
    return _ESCAPED_QUOTE.sub(r"\1", found.group(2)), found.end()


def _call(text: str, name: str, column: int, opening: int) -> tuple[Token, int]:
    """A function with the selector in its parentheses, which may hold any character that a glob may."""
    begin = _after_space(text, opening + 1)
    hook = _HOOK.match(text, begin)
    begin = hook.end() if hook else begin
    if text[begin : begin + 1] in ('"', "'"):
        glob, end = _quoted(text, begin)
        end = _after_space(text, end)
    else:
        found = _GLOB.match(text, begin)
        end = found.end() if found else begin
        glob = text[begin:end].rstrip()
    if text[end : end + 1] != ")":
        raise bad(text, end, "the parenthesis of a selector is not closed", f"write {name}(GLOB)")
    return Token("call", name, column, hook.group(1) if hook else "", glob, begin), end + 1
