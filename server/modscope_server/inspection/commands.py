"""Paths and other lists in messages, and in commands that can be pasted into a shell."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from modscope.paths import literal

__all__ = ["glob_of", "named"]

_NAMED = 20


def named(items: Iterable[str], separator: str = ", ") -> str:
    """The items in a sentence; of many the first, and how many more there are."""
    listed = list(items)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return separator.join(listed[:_NAMED]) + more


def glob_of(paths: Sequence[str], among: Iterable[str] = ()) -> str:
    """A glob that matches these of the paths `among` alone, quoted for a shell.

    Where there are many, those that are all there are under a module become one pattern.
    """
    escaped = [literal(path) for path in paths] if len(paths) <= _NAMED else _covering(paths, among)
    if escaped[0].startswith("-"):
        escaped[0] = "\\" + escaped[0]
    return shlex.quote(escaped[0] if len(escaped) == 1 else "{" + ",".join(escaped) + "}")


def _covering(paths: Sequence[str], among: Iterable[str]) -> list[str]:
    present = Counter(above for path in (among or paths) for above in _above(path))
    wanted = Counter(above for path in paths for above in _above(path))
    patterns: dict[str, None] = {}
    for path in paths:
        whole = (above for above in _above(path) if wanted[above] == present[above] > 1)
        above = next(whole, None)
        patterns[literal(path) if above is None else literal(above) + "*"] = None
    return list(patterns)


def _above(path: str) -> Iterator[str]:
    """What the path begins with, each part with its dot, shortest first."""
    yield ""
    for position, character in enumerate(path):
        if character == ".":
            yield path[: position + 1]
