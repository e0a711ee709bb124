"""What is told of a snapshot, and what it may be called."""

from __future__ import annotations

import re
from dataclasses import dataclass

from modscope_server.errors import BadRequest

__all__ = ["SnapshotRecord", "check_name"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """What is told of a snapshot."""

    name: str
    model: str
    """The model that it was asked of; it holds every model of the run."""
    step: int
    time: float
    """When it was taken, in Unix seconds."""
    nbytes: int
    """Bytes of its tensors."""
    parts: tuple[str, ...]
    who: str
    notes: tuple[str, ...]
    directory: str = ""
    """Absolute path of the directory below which it lies; empty where it is in memory."""


def check_name(name: str) -> None:
    """Raises BadRequest for a name that cannot be one: it becomes the name of a directory."""
    if not _NAME.fullmatch(name):
        raise BadRequest(
            f"{name!r} is no name for a snapshot",
            hint='use 1 to 100 letters, digits, "_", "-" and ".", which does not come first',
            field="name",
        )
