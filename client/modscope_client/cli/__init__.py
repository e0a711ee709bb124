"""The command line: verbs over the client, drawn for people or written for tools."""

from __future__ import annotations

__all__: list[str] = []
