"""Tensors in a stream, without the stream: what fills them as chunks arrive, what cuts them into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from google.protobuf.message import Message

from modscope import wire
from modscope.tensor import TensorData, chunks
from modscope.v1 import hook_service_pb2, model_service_pb2, parameter_service_pb2, tensor_pb2
from modscope.wire import Frame
from modscope_client import arrays, convert
from modscope_client.errors import Internal
from modscope_client.memory import Memory

if TYPE_CHECKING:
    from modscope_client.types import Array, Event

__all__ = ["Arrivals", "Events", "Fill", "forward_frames", "header", "tensor_frames"]

Q = TypeVar("Q", bound=Message)
H = TypeVar("H", parameter_service_pb2.ReadTensorsResponse, model_service_pb2.ForwardResponse)

Sink = Callable[[int, int, memoryview], None]
"""Takes the position of a tensor, an offset in it, and the bytes that go there."""


class Fill:
    """Tensors that follow each other without gaps, and how far the chunks of them have come."""

    def __init__(self, sink: Sink) -> None:
        self.done = 0
        """Bytes that have arrived."""
        self._sink = sink
        self._sizes: list[int] = []
        self._index = 0
        self._offset = 0

    def expect(self, sizes: Iterable[int]) -> None:
        """More tensors are to come, of so many bytes each."""
        self._sizes += sizes

    def begin(self, index: int) -> None:
        """The next bytes belong to this tensor. Raises Internal where one before it is not complete."""
        self._skip_complete()
        at_its_start = (self._index, self._offset) == (index, 0) and index < len(self._sizes)
        is_empty = 0 <= index < self._index and self._sizes[index] == 0
        if not (at_its_start or is_empty):
            raise Internal(f"tensor {index} begins in the stream where tensor {self._index} should go on")

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes. Raises Internal where they are too many."""
        view = memoryview(data)
        while len(view):
            self._skip_complete()
            if self._index == len(self._sizes):
                raise Internal(f"the stream has {len(view)} bytes beyond its last tensor")
            part = view[: self._left]
            self._sink(self._index, self._offset, part)
            self._offset += len(part)
            self.done += len(part)
            view = view[len(part) :]

    @property
    def complete(self) -> int:
        """How many tensors have all their bytes."""
        self._skip_complete()
        return self._index

    def finish(self) -> None:
        """The stream has ended. Raises Internal where bytes are missing."""
        if self.complete < len(self._sizes):
            raise Internal(f"the stream ended {self._left} bytes before the end of tensor {self._index}")

    @property
    def _left(self) -> int:
        return self._sizes[self._index] - self._offset if self._index < len(self._sizes) else 0

    def _skip_complete(self) -> None:
        while self._index < len(self._sizes) and self._left == 0:
            self._index += 1
            self._offset = 0


class Arrivals(Generic[H]):
    """Arrays that arrive in messages, one array after the other, each announced by its header."""

    def __init__(self) -> None:
        self._head: H | None = None
        self._tensors: list[Array] = []
        self._targets: list[memoryview] = []
        self._fill = Fill(self._put)

    @property
    def head(self) -> H:
        """The first message. Raises Internal where none came."""
        if self._head is None:
            raise Internal("the stream of tensors ended before it began")
        return self._head

    def take(self, message: Frame[H]) -> None:
        """One message: the next tensor's header, where it has one, and bytes of the tensor announced last."""
        head = message.header
        if self._head is None:
            self._head = head
        if head.HasField("tensor"):
            dtype, shape, size = convert.spec(head.tensor.spec)
            array, target = arrays.empty(dtype, shape, size)
            self._fill.finish()
            self._fill.expect([size])
            self._tensors.append(array)
            self._targets.append(target)
        self._fill.add(message.data)

    def finish(self, count: int) -> list[Array]:
        """All of them. Raises Internal where they are not as many, or not whole."""
        self._fill.finish()
        if len(self._tensors) != count:
            raise Internal(f"the stream ended after {len(self._tensors)} of {count} tensors")
        return self._tensors

    def _put(self, index: int, offset: int, data: memoryview) -> None:
        self._targets[index][offset : offset + len(data)] = data


class Events:
    """The events of a watch, each given out once the tensors that it carries are whole.

    Args:
        memory: what the arrays of large ones are made of.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._batch: list[Event] = []
        self._ends: list[int] = []
        self._targets: list[memoryview] = []
        self._fill = Fill(self._put)

    def take(self, message: Frame[hook_service_pb2.WatchResponse]) -> Iterator[Event]:
        """The events that one message makes whole, oldest first."""
        if message.header.events:
            self._fill.finish()
            yield from self._given(len(self._batch))
            self._start(message.header)
        self._fill.add(message.data)
        complete = self._fill.complete
        yield from self._given(sum(end <= complete for end in self._ends))

    def _start(self, message: hook_service_pb2.WatchResponse) -> None:
        """Make room for the tensors of a batch of events."""
        self._targets = []
        self._fill = Fill(self._put)
        for event in message.events:
            made: list[Array | None] = []
            for value in event.values:
                if not value.HasField("tensor"):
                    made.append(None)
                    continue
                dtype, shape, size = convert.spec(value.tensor)
                array, target = arrays.empty(dtype, shape, size, self._memory)
                made.append(array)
                self._targets.append(target)
                self._fill.expect([size])
            self._batch.append(convert.event(event, made))
            self._ends.append(len(self._targets))

    def _given(self, count: int) -> list[Event]:
        given = self._batch[:count]
        del self._batch[:count], self._ends[:count]
        return given

    def _put(self, index: int, offset: int, data: memoryview) -> None:
        self._targets[index][offset : offset + len(data)] = data


def header(key: str, tensor: TensorData) -> tensor_pb2.TensorHeader:
    """What announces a tensor."""
    return tensor_pb2.TensorHeader(key=key, spec=wire.spec_of(tensor.dtype, tensor.shape, len(tensor.data)))


def tensor_frames(first: Q, tensor: TensorData | None) -> Iterator[Frame[Q]]:
    """What is asked for, and from there on the bytes of its tensor, in as many requests as they need."""
    parts = chunks(b"" if tensor is None else tensor.data)
    yield Frame(first, next(parts, b""))
    more = type(first)()
    for chunk in parts:
        yield Frame(more, chunk)


def forward_frames(
    first: model_service_pb2.ForwardRequest, tensors: list[TensorData]
) -> Iterator[Frame[model_service_pb2.ForwardRequest]]:
    """The requests of one Forward: everything but tensors, then the tensors."""
    yield Frame(first)
    for index, tensor in enumerate(tensors):
        announced = model_service_pb2.ForwardRequest(tensor=header(str(index), tensor))
        yield from tensor_frames(announced, tensor)
