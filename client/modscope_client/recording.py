"""Watches on disk: recorded message by message, replayed without a server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from modscope import __version__, wire
from modscope.v1 import hook_service_pb2
from modscope.wire import Frame
from modscope_client import convert
from modscope_client.errors import Internal, InvalidArgument
from modscope_client.memory import Memory
from modscope_client.plain import plain
from modscope_client.recording_file import RecordingReader, RecordingWriter
from modscope_client.sinks import Metrics
from modscope_client.subscription import Progression, Watching

if TYPE_CHECKING:
    from modscope_client.sinks import Sink
    from modscope_client.types import Event, ModelInfo

__all__ = ["Recorder", "Recording", "pour"]

_Message = Frame[hook_service_pb2.WatchResponse]


class Recorder:
    """Writes what a watch is sent into a file, from its first message on.

    model.watch(...) gives a Subscription; `subscription.tap = recorder.take` before it is entered. Leaving
    the recorder's `with` without an error says in the file that it is whole.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        model: ModelInfo,
        request: hook_service_pb2.WatchRequest,
        *,
        count: int | None = None,
    ) -> None:
        """Prepare it; the file is made when the watch is armed. count: how many events it holds at most."""
        self._file = file
        self._header = {
            "modscope": __version__,
            "recorded": time.time(),
            "model": plain(model),
            "watch": json_format.MessageToDict(request, preserving_proto_field_name=True),
        }
        self._writer: RecordingWriter | None = None
        self._left = count
        self._bytes_left: int | None = None
        self.events = 0
        """Events that it holds."""

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        try:
            if kind is None:
                self._writer.finish()
        finally:
            self._writer.close()

    def take(self, message: _Message) -> None:
        """One message of the watch."""
        if self._writer is None:
            self._writer = RecordingWriter(self._file, self._header)
        message = self._cut(message)
        self.events += len(message.header.events)
        encoded = wire.encode(message)
        if encoded:
            self._writer.write(encoded)

    def _cut(self, message: _Message) -> _Message:
        """The message without events beyond the last that is wanted, and without their tensors."""
        if self._left is None:
            return message
        head, data = message.header, memoryview(message.data)
        if self._bytes_left is None and len(head.events) >= self._left:
            kept = list(head.events)[: self._left]
            self._bytes_left = sum(value.tensor.byte_size for event in kept for value in event.values)
        if self._bytes_left is None:
            self._left -= len(head.events)
            return message
        shorter = hook_service_pb2.WatchResponse()
        shorter.CopyFrom(head)
        del shorter.events[self._left :]
        self._left = 0
        data = data[: self._bytes_left]
        self._bytes_left -= len(data)
        return Frame(shorter, data)


class Recording(Watching):
    """A recorded watch: entered with `with`, iterated for its events, as a Subscription is.

    Raises InvalidArgument (NOT_A_RECORDING, LATER_VERSION, DAMAGED, TRUNCATED) for a file that is none, or
    not whole; where it breaks off, only after the events before that.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        """Read what it says of itself, and that the watch was armed."""
        self._reader = RecordingReader(file)
        try:
            self._decode = wire.decoder(hook_service_pb2.WatchResponse.FromString)
            first = self._read()
            if first is None:
                raise self._foreign("it holds no message")
            try:
                self._progression = Progression.of(first, Memory())
            except Internal as error:
                raise self._foreign(error.message) from None
            self.request = self._request()
            """What was asked for."""
        except BaseException:
            self._reader.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    @property
    def header(self) -> dict[str, Any]:
        """version, modscope, recorded (Unix seconds), model, watch."""
        return self._reader.header

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.request.model

    @property
    def hooks(self) -> tuple[str, ...]:
        """Kinds of hook that were asked for."""
        return tuple(convert.HOOK_NAMES.get(kind, "") for kind in self.request.hooks)

    def __iter__(self) -> Recording:
        return self

    def __next__(self) -> Event:
        progression = self._armed()
        while not progression.ready:
            message = self._read()
            if message is None:
                raise StopIteration
            try:
                self._take(message)
            except Internal as error:
                raise self._foreign(error.message) from None
        return progression.ready.popleft()

    def _read(self) -> _Message | None:
        message = self._reader.read()
        if message is None:
            return None
        try:
            return self._decode(message)
        except ValueError:
            raise self._foreign("a message cannot be read") from None

    def _request(self) -> hook_service_pb2.WatchRequest:
        try:
            return json_format.ParseDict(
                self.header["watch"], hook_service_pb2.WatchRequest(), ignore_unknown_fields=True
            )
        except (json_format.ParseError, KeyError, TypeError):
            raise self._foreign("its header does not tell the watch") from None

    def _foreign(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"{self._reader.file!r} is damaged: {what}", reason="DAMAGED")


def pour(
    recording: Recording, sink: Sink, *, count: int | None = None, then: Callable[[], None] = lambda: None
) -> int:
    """Give a sink the events of a recording, at most `count`, and close it after `then`; gives how many.

    Raises what reading the recording raises, once the sink has the events before.
    """
    given = 0
    try:
        sink.open(recording)
        try:
            for event in recording:
                sink.emit(event)
                given += 1
                if given == count:
                    break
        finally:
            counters = recording.counters
            sink.metrics(
                Metrics(
                    model=recording.model,
                    connected=False,
                    reconnects=0,
                    published=counters.published,
                    dropped=counters.dropped,
                    step=counters.step,
                )
            )
        then()
    finally:
        sink.close()
    return given
