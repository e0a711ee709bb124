"""Raw grpcio at its plainest, in a process of its own: a byte stream and a unary echo, no protobuf.

python -m benchmarks.peers serve SOCKET [BYTES]
python -m benchmarks.peers read ADDRESS BYTES
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from benchmarks.processes import answer

__all__ = ["CHUNK", "ECHO", "STREAM", "Echo", "Stream", "main"]

CHUNK = 1 << 20
STREAM = "/raw.Peer/Stream"
ECHO = "/raw.Peer/Echo"


class Stream:
    """Reads the byte stream into one buffer, whose pages are there from the second read on."""

    def __init__(self, address: str, size: int) -> None:
        self._channel = grpc.insecure_channel(address)
        self._call: Any = self._channel.unary_stream(STREAM)
        self._buffer = memoryview(bytearray(size))

    def read(self) -> int:
        """Bytes read."""
        position = 0
        for chunk in self._call(b""):
            end = position + len(chunk)
            self._buffer[position:end] = chunk
            position = end
        return position

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


class Echo:
    """Sends bytes and gets them back."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self.call: Any = self._channel.unary_unary(ECHO)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


class _Handlers(grpc.GenericRpcHandler):
    """The two calls. The chunks are made beforehand: the peer pays for nothing but the transport."""

    def __init__(self, size: int) -> None:
        starts = range(0, size, CHUNK)
        self._chunks = [bytes([index % 251]) * min(CHUNK, size - start) for index, start in enumerate(starts)]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """The handler of a call."""
        if details.method == STREAM:
            return grpc.unary_stream_rpc_method_handler(self._stream)
        if details.method == ECHO:
            return grpc.unary_unary_rpc_method_handler(self._echo)
        return None

    def _stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from self._chunks

    def _echo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return request


def main() -> None:
    """Serves, or reads whenever it is told to, until standard input ends."""
    role, where, size = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0
    if role == "serve":
        _serve(where, size)
    else:
        _read(where, size)


def _read(address: str, size: int) -> None:
    stream = Stream(address, size)

    def read() -> float:
        began = time.perf_counter()
        received = stream.read()
        taken = time.perf_counter() - began
        assert received == size
        return taken

    answer({}, {"read": read})
    stream.close()


def _serve(socket: str, size: int) -> None:
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((_Handlers(size),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    answer({"address": f"unix:{socket}"}, {})
    server.stop(None)


if __name__ == "__main__":
    main()
