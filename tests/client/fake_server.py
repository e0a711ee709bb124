"""A server of the contract whose every answer the test itself writes: for what a real one never does."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from modscope_client.address import Address
from modscope_client.channel import Endpoint
from modscope_client.rpcs import Rpc

__all__ = ["Hold", "serving"]

Behaviour = Callable[[Any, grpc.ServicerContext], Any]
"""Takes the request's bytes (or an iterator of them) and gives messages, bytes, or an iterator of them."""

_SHAPES = {
    "Forward": (True, True),
    "WriteTensor": (True, False),
    "Upload": (True, False),
    "Transact": (True, False),
    "ListModules": (False, True),
    "ListParameters": (False, True),
    "ReadTensors": (False, True),
    "Download": (False, True),
    "Watch": (False, True),
    "WaitForPause": (False, True),
}


class Hold:
    """A place at which a handler waits until the call ends or the test lets it go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._go = threading.Event()

    def wait(self, context: grpc.ServicerContext) -> None:
        if context.add_callback(self._go.set):
            self.reached.set()
            assert self._go.wait(30)

    def let_go(self) -> None:
        self._go.set()


@contextmanager
def serving(behaviours: dict[Rpc[Any, Any], Behaviour], **endpoint: Any) -> Iterator[Endpoint]:
    """Serves the rpcs with the behaviours of the test; gives the endpoint of it."""
    server = grpc.server(ThreadPoolExecutor(8))
    for rpc, behaviour in behaviours.items():
        server.add_generic_rpc_handlers((_handler(rpc, behaviour),))
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        path = Path(folder) / "s"
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield Endpoint(place=Address(f"unix:{path}", local=True), **endpoint)
        finally:
            server.stop(0).wait()


def _handler(rpc: Rpc[Any, Any], behaviour: Behaviour) -> grpc.GenericRpcHandler:
    takes, gives = _SHAPES.get(rpc.name, (False, False))
    make = getattr(
        grpc, f"{'stream' if takes else 'unary'}_{'stream' if gives else 'unary'}_rpc_method_handler"
    )
    return grpc.method_handlers_generic_handler(
        rpc.service, {rpc.name: make(behaviour, response_serializer=_bytes)}
    )


def _bytes(answer: bytes | Message) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
