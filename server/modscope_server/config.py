"""What a server may be told: frozen, keyword-only options, checked when they are made."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from modscope_server.errors import ConfigurationError

__all__ = ["TLS", "Limits", "ServerConfig"]


@dataclass(frozen=True, kw_only=True)
class TLS:
    """Files with which a server proves who it is. Each is PEM."""

    cert: str | os.PathLike[str]
    """The server's certificate, with the chain up to its authority."""

    key: str | os.PathLike[str]
    """The private key of that certificate."""

    client_ca: str | os.PathLike[str] | None = None
    """Authority whose certificates clients must show; None asks clients for none."""

    def __post_init__(self) -> None:
        for name in ("cert", "key", "client_ca"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(path):
                raise ConfigurationError(
                    f"tls.{name}: there is no file {os.fspath(path)!r}",
                    hint=f"give the path of a PEM file as {name}",
                    field=f"tls.{name}",
                )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of the training process modscope may take."""

    streams: int = 64
    """Streaming calls open at one time; a further one is refused with LIMIT."""

    staging_bytes: int = 4 << 30
    """Bytes of host memory that bulk reads and uploads may hold at one time, all calls together."""

    read_share: float = 0.05
    """Share of a running loop's time that reads may take; later ones wait."""

    undo_bytes: int = 2 << 30
    """Bytes of copies that the ledger keeps so that operations can be undone; the oldest go first."""

    operations: int = 10_000
    """Operations that the ledger remembers."""

    snapshot_bytes: int = 8 << 30
    """Bytes of tensors that all snapshots in memory may hold together."""

    queue: int = 8192
    """Events that a watch's queue may hold; a caller can ask for fewer."""

    queue_bytes: int = 256 << 20
    """Bytes of tensors that a watch's queue may hold."""

    bus_bytes: int = 1 << 30
    """Bytes of tensors that the queues of all watches may hold together."""

    block_ms: float = 0.0
    """Milliseconds for which a watch may make each step wait; 0 lets none."""

    heartbeat: float = 5.0
    """Seconds between two messages with the counters of a watch, be it quiet or busy."""

    def __post_init__(self) -> None:
        for name in (
            "streams",
            "staging_bytes",
            "undo_bytes",
            "operations",
            "snapshot_bytes",
            "queue",
            "queue_bytes",
            "bus_bytes",
        ):
            self._require(name, int, lambda value: value >= 1, "a whole number from 1")
        self._require("read_share", (int, float), lambda value: 0 < value <= 1, "a share above 0, at most 1")
        self._require("block_ms", (int, float), lambda value: 0 <= value < 1e6, "milliseconds, from 0")
        self._require("heartbeat", (int, float), lambda value: value > 0, "seconds above 0")

    def _require(
        self, name: str, kind: type | tuple[type, ...], holds: Callable[[Any], bool], wanted: str
    ) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
            raise ConfigurationError(
                f"limits.{name} is {value!r}", hint=f"give {wanted}", field=f"limits.{name}"
            )


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where a server listens, and whom it lets do what."""

    address: str | None = None
    """`unix:/path` or `host:port`, port 0 for a free one; None is a Unix socket in the runtime directory."""

    writable: bool = False
    """Whether the operator token admits mutating calls."""

    tls: TLS | None = None
    """Certificate of the server; must be set where the address is TCP beyond loopback."""

    token: str | None = None
    """The operator token; None draws one. The viewer token is always drawn."""

    limits: Limits = field(default_factory=Limits)
    """Bounds on what it takes."""

    def __post_init__(self) -> None:
        token = self.token
        if token is not None and not (isinstance(token, str) and _is_token(token)):
            raise ConfigurationError(
                "token must be visible ASCII characters without spaces, at least one",
                hint="leave token out, and one is drawn",
                field="token",
            )
        if not isinstance(self.limits, Limits):
            raise ConfigurationError(
                f"limits is a {type(self.limits).__name__}",
                hint="give modscope_server.Limits(...)",
                field="limits",
            )
        if self.tls is not None and not isinstance(self.tls, TLS):
            raise ConfigurationError(
                f"tls is a {type(self.tls).__name__}",
                hint="give modscope_server.TLS(cert=..., key=...) or a pair of file paths",
                field="tls",
            )


def _is_token(text: str) -> bool:
    return bool(text) and all("!" <= character <= "~" for character in text)
