"""Prometheus: the last statistics of every value, behind an HTTP endpoint that is scraped."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from modscope import __version__
from modscope_client.errors import InvalidArgument
from modscope_client.exporters import series
from modscope_client.exporters.families import FAMILIES
from modscope_client.sinks import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modscope_client.sinks import Metrics, Watched
    from modscope_client.types import Event

__all__ = ["Prometheus"]


class Prometheus:
    """Serves http://HOST:PORT/metrics with prometheus_client, from a registry of its own.

    Raises InvalidArgument where `target` is not HOST:PORT; port 0 takes a free one.
    """

    serves = True

    def __init__(self, target: str) -> None:
        self._host, self._port = _host_and_port(target)
        self.place = f"http://{target}/metrics"
        """The URL; with the port that was taken, once it is open."""
        self._state = series.State()
        self._families: Any = None
        self._server: tuple[Any, threading.Thread] | None = None

    def open(self, watch: Watched) -> None:
        """Begin to serve.

        Raises FailedPrecondition without prometheus_client, InvalidArgument for a port that cannot be had.
        """
        if self._server is not None:
            return
        client = need("prometheus_client", extra="prometheus")
        self._families = need("prometheus_client.core", extra="prometheus")
        registry = client.CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            self._server = client.start_http_server(self._port, self._host, registry)
        except OSError as error:
            raise InvalidArgument(
                f"cannot serve on {self._host}:{self._port}: {error.strerror or error}",
                hint="choose another port; 0 takes a free one",
                details={"field": "port"},
            ) from None
        place = f"[{self._host}]" if ":" in self._host else self._host
        self.place = f"http://{place}:{self._server[0].server_port}/metrics"

    def emit(self, event: Event) -> None:
        """Replace what was known of its values."""
        self._state.take(event)

    def metrics(self, metrics: Metrics) -> None:
        """Replace what was known beside the events."""
        self._state.metrics = metrics

    def close(self) -> None:
        """Serve no more."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()

    def collect(self) -> Iterator[Any]:
        """What a scrape gets, as prometheus_client asks for it, in a thread of its server."""
        kinds = {
            "gauge": self._families.GaugeMetricFamily,
            "counter": self._families.CounterMetricFamily,
        }
        for family in FAMILIES:
            made = kinds[family.kind](family.name, family.help, labels=family.labels)
            for labels, amount in self._state.samples(family):
                made.add_metric(labels, amount)
            yield made
        info = self._families.GaugeMetricFamily(
            "modscope_build_info", "1; the version of modscope that exports.", labels=["version"]
        )
        info.add_metric([__version__], 1.0)
        yield info


def _host_and_port(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed) or not port.isdecimal() or int(port) > 65535:
        raise InvalidArgument(
            f"{target!r} is not HOST:PORT", hint="such as 127.0.0.1:9464", details={"field": "target"}
        )
    return host.strip("[]"), int(port)
