"""The grammar of module paths: joining, splitting, globs, wrapper prefixes.

A path is PyTorch's dotted name; "" is the root. A glob: `*` matches any run of characters, dots
included; `?` one; `[...]` a set (`[!...]` its complement); `{a,b}` either; a backslash escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

__all__ = ["WRAPPER_PREFIXES", "BadGlob", "compile_glob", "join", "literal", "parent"]

WRAPPER_PREFIXES = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Attribute names under which wrappers keep what they wrap; left out only where the owner is a wrapper."""

_MOST_WAYS = 1024
_MEMBER = re.compile(r"(.)-(.)|(.)", re.DOTALL)
"""A range of a set, or one character of it; a hyphen that is no range's stands for itself."""


class BadGlob(ValueError):
    """A pattern that is no glob; the message says where and how to mend it."""


def join(path: str, name: str) -> str:
    """The path of `name` below `path`."""
    return f"{path}.{name}" if path else name


def parent(path: str) -> tuple[str, str]:
    """The path above and the last component."""
    above, _, name = path.rpartition(".")
    return above, name


def literal(path: str) -> str:
    """The glob that matches this path alone."""
    return re.sub(r"([*?\[\]{}\\,])", r"\\\1", path)


@lru_cache(maxsize=256)
def compile_glob(pattern: str) -> re.Pattern[str]:
    """A compiled pattern to be used with `fullmatch`; no pattern makes it backtrack. Raises BadGlob."""
    return re.compile("|".join(_expression(way, number) for number, way in enumerate(_ways(pattern))))


def _ways(pattern: str) -> list[tuple[str, ...]]:
    """The pattern without braces, as each sequence of items that they admit; an item "*" is the star."""
    above: list[tuple[list[tuple[str, ...]], list[tuple[str, ...]]]] = []
    finished: list[tuple[str, ...]] = []
    open_ways: list[tuple[str, ...]] = [()]
    run: list[str] = []

    def flush() -> None:
        nonlocal open_ways
        if run:
            open_ways = [(*way, *run) for way in open_ways]
            run.clear()

    for kind, item in _items(pattern):
        if kind == "item":
            run.append(item)
            continue
        flush()
        if kind == "{":
            above.append((finished, open_ways))
            finished, open_ways = [], [()]
        elif kind == ",":
            finished += open_ways
            open_ways = [()]
        else:
            inner = dict.fromkeys(finished + open_ways)
            finished, before = above.pop()
            if len(before) * len(inner) > _MOST_WAYS:
                raise BadGlob(f"glob {pattern!r} stands for too many patterns: use fewer {{a,b}} in one")
            open_ways = list(dict.fromkeys((*head, *tail) for head in before for tail in inner))
    flush()
    if above:
        raise BadGlob(f"glob {pattern!r} has a {{ without its }}: close it, or write \\{{ for the character")
    return open_ways


def _items(pattern: str) -> Iterator[tuple[str, str]]:
    """The pattern's braces and commas, and as "item" the expression of everything else."""
    depth = position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "*":
            yield "item", "*"
        elif character == "?":
            yield "item", "(?s:.)"
        elif character == "\\":
            if position == len(pattern):
                raise BadGlob(f"glob {pattern!r} ends in a backslash: write \\\\ for a backslash itself")
            yield "item", re.escape(pattern[position])
            position += 1
        elif character == "[":
            text, position = _set(pattern, position)
            yield "item", text
        elif character == "{" or (depth and character in ",}"):
            depth += {"{": 1, ",": 0, "}": -1}[character]
            yield character, ""
        else:
            yield "item", re.escape(character)


def _expression(way: tuple[str, ...], number: int) -> str:
    """A regular expression for one way.

    What stands between two stars is taken where it comes first, and never reconsidered: a
    lookahead with a back-reference is an atomic group, which Python knows from 3.11 on only.
    """
    parts = [""]
    for item in way:
        if item == "*":
            parts.append("")
        else:
            parts[-1] += item
    if len(parts) == 1:
        return parts[0]
    between = "".join(
        f"(?=(?P<g{number}_{index}>(?s:.*?){part}))(?P=g{number}_{index})"
        for index, part in enumerate(parts[1:-1])
        if part
    )
    return f"{parts[0]}{between}(?s:.*){parts[-1]}"


def _set(pattern: str, position: int) -> tuple[str, int]:
    """The regular expression of a set whose [ has been read, and the position after its ]."""
    end = pattern.find("]", position + (2 if pattern[position : position + 1] == "!" else 1))
    if end < 0:
        raise BadGlob(f"glob {pattern!r} has a [ without its ]: close it, or write \\[ for the character")
    body = pattern[position:end]
    negated = body.startswith("!")
    members = []
    for first, last, single in _MEMBER.findall(body[1:] if negated else body):
        if first > last:
            raise BadGlob(f"glob {pattern!r} has a bad set [{body}]: {first}-{last} goes backwards")
        members.append(re.escape(single) if single else f"{re.escape(first)}-{re.escape(last)}")
    return f"[{'^' if negated else ''}{''.join(members)}]", end + 1
