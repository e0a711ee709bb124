"""A watch whose messages were encoded beforehand, from a server of the kind that modscope uses.

python -m benchmarks.encoded SOCKET
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc

from benchmarks.processes import answer
from benchmarks.sources import STATISTICS
from modscope.v1 import hook_service_pb2, model_service_pb2
from modscope_client import connect
from modscope_client.rpcs import GET_MODEL, STOP_WATCH, WATCH
from modscope_server.server import _OPTIONS as SERVER_OPTIONS
from modscope_server.services.executor import DaemonPool

__all__ = ["Recording", "main"]

_Response = hook_service_pb2.WatchResponse


class Recording(grpc.GenericRpcHandler):
    """The messages of one watch: taken from a real server, then sent to whoever watches here."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._count = 0
        self._goes, self._stopped = threading.Event(), threading.Event()

    def record(self, address: str, token: str, count: int) -> None:
        """Watch, and keep what comes until so many events have. Returns when the watch is armed."""
        self._count = count
        with connect(address, token=token) as client:
            request = client.model().watch(**cast("Any", STATISTICS)).request.SerializeToString()
        self._channel = grpc.insecure_channel(address)
        watch: Any = self._channel.unary_stream(WATCH.path)
        stream = watch(request, metadata=(("authorization", f"Bearer {token}"),))
        self._messages.append(next(stream))
        self._thread = threading.Thread(target=self._keep, args=(stream,))
        self._thread.start()

    def recorded(self) -> int:
        """Wait until they have come. Gives their bytes."""
        self._thread.join()
        self._channel.close()
        return sum(map(len, self._messages))

    def run(self, passes: int) -> float:
        """Let the stream go on after its first message. Gives when that was."""
        began = time.perf_counter()
        self._goes.set()
        return began

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """What a client calls that watches."""
        if details.method == WATCH.path:
            return grpc.unary_stream_rpc_method_handler(self._watch)
        answers: dict[str, Callable[[bytes, Any], bytes]] = {
            GET_MODEL.path: lambda request, context: model_service_pb2.GetModelResponse().SerializeToString(),
            STOP_WATCH.path: self._stop,
        }
        answered = answers.get(details.method)
        return None if answered is None else grpc.unary_unary_rpc_method_handler(answered)

    def _keep(self, stream: Any) -> None:
        left = self._count
        for message in stream:
            self._messages.append(message)
            left -= len(_Response.FromString(message).events)
            if not left:
                stream.cancel()
                return

    def _watch(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield self._messages[0]
        self._goes.wait()
        yield from self._messages[1:]
        self._stopped.wait()
        self._goes.clear()
        self._stopped.clear()

    def _stop(self, request: bytes, context: Any) -> bytes:
        self._stopped.set()
        return hook_service_pb2.StopWatchResponse(published=self._count).SerializeToString()


def main() -> None:
    """Records and serves until standard input ends."""
    recording = Recording()
    server = grpc.server(cast("Any", DaemonPool(8, "encoded")), options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((recording,))
    server.add_insecure_port(f"unix:{sys.argv[1]}")
    server.start()
    words: dict[str, Callable[..., Any]] = {
        "record": recording.record,
        "recorded": recording.recorded,
        "run": recording.run,
    }
    answer({"address": f"unix:{sys.argv[1]}", "token": "any"}, words)
    server.stop(None)


if __name__ == "__main__":
    main()
