"""The pages: current, with links that lead somewhere and Python that runs as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(300)  # several pages, each of which starts servers of its own
def test_pages_are_current_and_true() -> None:
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("page", "most"),
    [
        (ROOT / "CONTRIBUTING.md", 120),
        *((page, 60) for page in sorted((ROOT / "docs/decisions").glob("*.md"))),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else str(value),
)
def test_pages_stay_short(page: Path, most: int) -> None:
    assert len(page.read_text().splitlines()) <= most
