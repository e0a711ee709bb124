"""Plain functions that look into a model and change it. They know torch, but no threads and no network."""

from __future__ import annotations

__all__: list[str] = []
