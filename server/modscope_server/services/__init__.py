"""Where gRPC begins: one thin servicer per *_service.proto, and what stands around them."""

from __future__ import annotations

__all__: list[str] = []
