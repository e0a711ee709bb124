"""The modscope contract: what server and client agree on. Knows neither torch nor sockets."""

from __future__ import annotations

__version__ = "0.1.0"
