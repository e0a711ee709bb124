"""Addresses as people type them: `unix:/path` or `host:port`."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from modscope_server.errors import ConfigurationError

__all__ = ["MAX_UNIX_PATH", "TcpAddress", "UnixAddress", "parse_address"]

MAX_UNIX_PATH = 107
"""Bytes that the path of a Unix socket may have."""

_FORMS = "give unix:/path, host:port, or host:0 for a free port"


class UnixAddress(NamedTuple):
    """A Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(NamedTuple):
    """A TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this host reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> UnixAddress | TcpAddress:
    """What an address names. Raises ConfigurationError for one that a server cannot listen at."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path.startswith("/"):
            raise _refusal(text, "the path of a Unix socket must be absolute", "give unix:/path")
        if len(path.encode()) > MAX_UNIX_PATH:
            raise _refusal(text, f"a socket's path has at most {MAX_UNIX_PATH} bytes", "give a shorter path")
        return UnixAddress(path)
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not host or (":" in host and not bracketed) or "/" in host:
        raise _refusal(text, "it is neither a Unix socket nor host:port", _FORMS)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise _refusal(text, f"{port!r} is no port", _FORMS)
    return TcpAddress(host[1:-1] if bracketed else host, int(port))


def _refusal(text: str, why: str, hint: str) -> ConfigurationError:
    return ConfigurationError(f"address {text!r}: {why}", hint=hint, field="address")
