"""Assembly: a configuration and a runtime become a gRPC server with health and reflection."""

from __future__ import annotations

import secrets
import threading
from typing import Any, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from modscope_server.address import TcpAddress, UnixAddress, parse_address
from modscope_server.config import ServerConfig
from modscope_server.discovery import Place
from modscope_server.errors import ConfigurationError
from modscope_server.listener import UnixClaim, bind_tcp, bind_unix
from modscope_server.services.auth import Guard
from modscope_server.services.executor import DaemonPool
from modscope_server.services.gate import SPARE_WORKERS, Gate
from modscope_server.services.handlers import Entrance, open_stream_handler, service_handlers
from modscope_server.services.serving import Serving
from modscope_server.services.table import SERVICES

__all__ = ["Server"]

_MESSAGE_BYTES = 8 << 20
_WAITING_CALLS = 256
_DRAIN_SECONDS = 1.0
_GRACE_SECONDS = 0.5
_STOP_SECONDS = 5.0

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # A client may ping once a second; the default answers that with GOAWAY too_many_pings.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # Without ping_timeout_ms a client that froze is found after a minute.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)


class Server:
    """A gRPC server over a runtime. It listens from the moment at which it is made, until `stop`.

    Raises ConfigurationError where it cannot listen at the configured address; nothing is left
    behind then.
    """

    def __init__(self, config: ServerConfig, serving: Serving, place: Place) -> None:
        self.token = config.token or secrets.token_urlsafe(32)
        self.viewer_token = secrets.token_urlsafe(32)
        self._gate = Gate(config.limits.streams)
        self._claim: UnixClaim | None = None
        size = config.limits.streams + SPARE_WORKERS
        self._pool = DaemonPool(size, "modscope")
        self._grpc = grpc.server(
            cast("Any", self._pool), options=_OPTIONS, maximum_concurrent_rpcs=size + _WAITING_CALLS
        )
        guard = Guard(self.token, self.viewer_token, writable=config.writable)
        self._health = _add_services(self._grpc, serving, Entrance(guard, self._gate))
        try:
            self.address = self._bind(config, place)
            self._grpc.start()
        except BaseException:
            self._release()
            raise
        # Threads cannot be started while the interpreter exits, so the one that stops the server waits here.
        self._stop_wanted, self._stopped = threading.Event(), threading.Event()
        threading.Thread(target=self._stop_when_wanted, name="modscope-stop", daemon=True).start()

    def stop(self) -> None:
        """Let what is under way end, a second at most, then stop listening and end the rest. Idempotent."""
        self._health.enter_graceful_shutdown()
        self._gate.close(_DRAIN_SECONDS)
        self._stop_wanted.set()
        self._stopped.wait(_STOP_SECONDS)
        self._gate.close(_DRAIN_SECONDS)
        self._release()

    def _stop_when_wanted(self) -> None:
        self._stop_wanted.wait()
        try:
            # With a grace, clients are told in order that the server goes; without one, that it failed.
            self._grpc.stop(_GRACE_SECONDS).wait()
        except RuntimeError:
            # gRPC starts a thread for the grace, and from Python 3.12 none can be started at exit.
            self._grpc.stop(None)
        self._pool.shutdown()
        self._stopped.set()

    def _bind(self, config: ServerConfig, place: Place) -> str:
        chosen = UnixAddress(place.socket_path()) if config.address is None else parse_address(config.address)
        if isinstance(chosen, TcpAddress):
            return str(bind_tcp(self._grpc, chosen, config.tls))
        if config.tls is not None:
            raise ConfigurationError(
                "tls is set, and a Unix socket speaks plain HTTP/2",
                hint="give address='host:port', or leave tls out",
                field="tls",
            )
        if config.address is not None:
            self._claim = UnixClaim(chosen)
        bind_unix(self._grpc, chosen)
        return str(chosen)

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()


def _add_services(server: grpc.Server, serving: Serving, entrance: Entrance) -> health.HealthServicer:
    handlers = [service_handlers(service, make(serving), entrance) for service, make in SERVICES]
    reflected: Any = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    names = [service.full_name for service, _ in SERVICES]
    known = [*names, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflect: Any = reflection.ReflectionServicer(known).ServerReflectionInfo
    server.add_generic_rpc_handlers((*handlers, open_stream_handler(reflected, reflect, entrance.gate)))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", *known):
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return servicer
