"""One file per verb, each with a `command`; imported only when its verb is typed."""

from __future__ import annotations

__all__: list[str] = []
