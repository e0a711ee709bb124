"""Texts that are compared with files below tests/golden."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["compare", "timeless"]

FOLDER = Path(__file__).parents[1] / "golden"


def compare(name: str, text: str) -> None:
    """A text with the golden file of that name; MODSCOPE_UPDATE_GOLDEN=1 writes the file instead."""
    file = FOLDER / name
    if os.environ.get("MODSCOPE_UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def timeless(text: str) -> str:
    """The text with one time of day in place of those that it tells."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-01-02 03:04:05", text)
