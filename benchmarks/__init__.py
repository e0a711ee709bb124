"""Side-by-side measurements: what modscope costs beside the plainest thing that does the same work."""

from __future__ import annotations
