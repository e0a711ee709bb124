"""modscope in the training process: attach it to a model, and clients can look inside and change it."""

from __future__ import annotations

from modscope_server.attach import attach
from modscope_server.config import TLS, Limits, ServerConfig
from modscope_server.errors import ConfigurationError, ModscopeServerError
from modscope_server.fork import ModscopeWarning
from modscope_server.scope import DisabledScope, Scope

__all__ = [
    "TLS",
    "ConfigurationError",
    "DisabledScope",
    "Limits",
    "ModscopeServerError",
    "ModscopeWarning",
    "Scope",
    "ServerConfig",
    "attach",
]
