"""Channels: where a server is, how it is spoken to, and what every call carries.

Reads are sent again by gRPC itself, by service config, where a connection was lost; nothing else is.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modscope_client.address import Address, parse_address
from modscope_client.discovery import locate
from modscope_client.errors import FailedPrecondition, InvalidArgument, Unavailable
from modscope_client.rpcs import RETRIED
from modscope_client.transport import grpc

__all__ = [
    "BULK_BYTES",
    "DEFAULT_TIMEOUT",
    "EVENTS_AHEAD",
    "MAX_MESSAGE_BYTES",
    "TENSORS_AHEAD",
    "Endpoint",
    "check_timeout",
    "forked_or_closed",
]

DEFAULT_TIMEOUT = 10.0
"""Seconds that a call may take; a bulk transfer, that it may stand still."""

MAX_MESSAGE_BYTES = 8 << 20
BULK_BYTES = 1 << 20
"""A call that carries more is a bulk transfer: it may take any time as long as it moves."""

_OPTIONS: dict[str, int] = {
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.ping_timeout_ms": 10_000,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
}

EVENTS_AHEAD = 16 << 10
"""Bytes on their way to a reader of events: gRPC's own choice lets thousands lie there, old and unread."""
TENSORS_AHEAD = 4 << 20
"""The same for whole tensors: with less on the way, each message is sent when the one before was taken."""

_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": service, "method": name} for service, name in RETRIED],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

_first_opened_in: int | None = None


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server as a client reaches it."""

    place: Address
    """Where it listens."""
    token: str | None = field(default=None, repr=False)
    """The bearer token; None where there is none to send."""
    secure: bool = False
    """Whether TLS is spoken."""
    root_certificates: bytes | None = field(default=None, repr=False)
    """PEM of the authorities to trust; None means the system's."""

    @classmethod
    def find(
        cls,
        address: str | None,
        token: str | None,
        tls: bool | str | os.PathLike[str] | bytes | None,
        *,
        insecure: bool,
    ) -> Endpoint:
        """The endpoint that arguments, environment and this host's runtime directory make.

        tls: True for the system's authorities, a path or PEM bytes for others, False for none, None
        for what the server's own record says. Raises InvalidArgument for a token that would travel
        unencrypted to another host, unless `insecure`; Unavailable where no server is to be found.
        """
        given = parse_address(address).text if address else None
        where, token, speaks_tls = locate(given, token)
        parsed = parse_address(where)
        secure = speaks_tls if tls is None else tls is not False
        if token and not secure and not parsed.local and not insecure:
            raise InvalidArgument(
                f"the token would travel unencrypted to {parsed.text}",
                hint="give tls=True, tls=CA_FILE, or insecure=True to send it nonetheless",
                details={"field": "tls"},
            )
        if token and not all("!" <= character <= "~" for character in token):
            raise InvalidArgument("the token has characters that no token has", details={"field": "token"})
        return cls(
            place=parsed,
            token=token,
            secure=secure,
            root_certificates=_pem(tls) if secure else None,
        )

    @property
    def address(self) -> str:
        """unix:/path or host:port."""
        return self.place.text

    def open(self, *, ahead: int | None = None) -> grpc.Channel:
        """A channel to it; for a watch, one that holds so many bytes on the way, beyond what is read."""
        self._check_fork()
        options = self._options(ahead)
        if self.secure:
            return grpc.secure_channel(self.place.target, self._credentials(), options)
        return grpc.insecure_channel(self.place.target, options)

    def open_async(self, *, ahead: int | None = None) -> grpc.aio.Channel:
        """A channel of grpc.aio to it, of the running event loop."""
        self._check_fork()
        options = self._options(ahead)
        if self.secure:
            return grpc.aio.secure_channel(self.place.target, self._credentials(), options)
        return grpc.aio.insecure_channel(self.place.target, options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call from the calling thread carries: who asks, and from which thread."""
        caller = ("modscope-caller", f"{_process()}{threading.get_native_id()}")
        return (caller,) if self.token is None else (("authorization", f"Bearer {self.token}"), caller)

    def _options(self, ahead: int | None) -> list[tuple[str, Any]]:
        options: dict[str, Any] = {**_OPTIONS, "grpc.service_config": _SERVICE_CONFIG}
        if self.place.local:
            options["grpc.enable_http_proxy"] = 0
        if ahead is not None:
            options["grpc.http2.bdp_probe"] = 0
            options["grpc.http2.lookahead_bytes"] = ahead
            options["grpc.use_local_subchannel_pool"] = 1
        return list(options.items())

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.root_certificates)

    def _check_fork(self) -> None:
        """Refuse where a call would hang: grpc ran before this process was forked, without fork support."""
        global _first_opened_in
        if _first_opened_in is None:
            _first_opened_in = os.getpid()
        setting = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").lower()
        if _first_opened_in != os.getpid() and setting in ("0", "false", "no", "off"):
            raise FailedPrecondition(
                "this process was forked from one that has a modscope client, and grpc does not survive that",
                reason="FORKED",
                hint="start the process with the spawn method, or connect in it alone",
            )


def forked_or_closed(opened_in: int, address: str) -> FailedPrecondition | Unavailable:
    """The error of a client that is of no use any more."""
    if opened_in != os.getpid():
        return FailedPrecondition(
            f"this client was opened in process {opened_in}, and a forked one cannot share its connection",
            reason="FORKED",
            hint="call connect() in the process that uses it",
        )
    return Unavailable(f"this client of {address} is closed", reason="CLOSED", hint="call connect() anew")


def check_timeout(timeout: Any) -> float:
    """The seconds, where they make a deadline. Raises InvalidArgument."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise InvalidArgument(
            f"timeout {timeout!r} is no number of seconds above 0",
            hint=f"leave it out for {DEFAULT_TIMEOUT:g}",
            details={"field": "timeout"},
        )
    return float(timeout)


def _pem(tls: bool | str | os.PathLike[str] | bytes | None) -> bytes | None:
    if tls is None or isinstance(tls, bool):
        return None
    if isinstance(tls, bytes):
        return tls
    try:
        with open(tls, "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidArgument(
            f"tls: {os.fspath(tls)!r} cannot be read: {error.strerror}",
            hint="give the path of a PEM file, its bytes, or True for the system's authorities",
            details={"field": "tls"},
        ) from error


_processes: Mapping[int, str] = {}


def _process() -> str:
    """BOOT_ID/PID/ of this process, made once in each."""
    global _processes
    pid = os.getpid()
    if pid not in _processes:
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                boot = file.read().strip()
        except OSError:
            import uuid

            boot = f"host-{uuid.getnode():x}"
        _processes = {pid: f"{boot}/{pid}/"}
    return _processes[pid]
