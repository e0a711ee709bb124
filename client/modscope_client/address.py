"""Addresses as people type them: `unix:/path` or `host:port`."""

from __future__ import annotations

from typing import NamedTuple

from modscope_client.errors import InvalidArgument

__all__ = ["Address", "parse_address"]

_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-~")


class Address(NamedTuple):
    """Where a server listens."""

    text: str
    """The address in its one spelling."""
    local: bool
    """Whether what is sent there cannot leave this host."""

    @property
    def target(self) -> str:
        """The address as grpc wants it: the path of a socket is read as that of a URL."""
        if not self.text.startswith("unix:"):
            return self.text
        path = self.text.removeprefix("unix:").encode()
        return "unix:" + "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in path)


def parse_address(text: str) -> Address:
    """What an address names. Raises InvalidArgument for what is no address."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path.startswith("/") or path.startswith("//"):
            raise _refusal(text, "the path of a Unix socket must be absolute")
        return Address(f"unix:{path}", local=True)
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not host or "/" in host or (":" in host and not bracketed):
        raise _refusal(text, "it is neither a Unix socket nor host:port")
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise _refusal(text, f"{port!r} is no port")
    return Address(f"{host}:{int(port)}", local=_is_loopback(host[1:-1] if bracketed else host))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refusal(text: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"address {text!r}: {why}", hint="give unix:/path or host:port", details={"field": "address"}
    )
