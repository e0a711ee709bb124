"""grpc, imported so that a training process may import the client before it attaches.

With grpc's own fork support, forked DataLoader workers crash now and then beside an open stream; it
can be switched off only before the first import of grpc (docs/decisions/0002).
"""

from __future__ import annotations

import os
import sys

if "grpc" not in sys.modules:
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

__all__ = ["grpc"]
