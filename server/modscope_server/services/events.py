"""Events -> the messages of a watch's stream.

Fields are set one by one in the message that is sent, and only where they differ from what an empty one says:
that takes a third of what constructors and a copy take, and it is time in which a training thread waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from modscope import wire
from modscope.tensor import chunks
from modscope.v1 import event_pb2, hook_service_pb2
from modscope.wire import Frame
from modscope_server.inspection.records import HistogramRecord, SampleRecord
from modscope_server.runtime.bus import HookEvent, HookValue
from modscope_server.services.convert import HOOK_KINDS, stats

__all__ = ["messages"]

_Response = hook_service_pb2.WatchResponse
_BATCH_BYTES = 1 << 20
_ROLES: dict[str, event_pb2.Role.ValueType] = {
    "input": event_pb2.ROLE_INPUT,
    "output": event_pb2.ROLE_OUTPUT,
    "grad_input": event_pb2.ROLE_GRAD_INPUT,
    "grad_output": event_pb2.ROLE_GRAD_OUTPUT,
    "parameter": event_pb2.ROLE_PARAMETER,
    "gradient": event_pb2.ROLE_GRADIENT,
    "metric": event_pb2.ROLE_METRIC,
}


def messages(events: Iterable[HookEvent]) -> Iterator[Frame[_Response]]:
    """Events in batches; one that brings tensors ends its batch, and their bytes follow."""
    batch, size = _Response(), 0
    for event in events:
        message = batch.events.add()
        _event(event, message)
        size += message.ByteSize()
        tensors = [value.tensor for value in event.values if value.tensor is not None]
        if tensors or size > _BATCH_BYTES:
            yield Frame(batch)
            batch, size = _Response(), 0
        for tensor in tensors:
            for chunk in chunks(tensor.data):
                yield Frame(_Response(), chunk)
    if size:
        yield Frame(batch)


def _event(record: HookEvent, message: event_pb2.Event) -> None:
    message.seq = record.seq
    message.step = record.step
    message.model = record.model
    message.path = record.path
    message.type = record.type
    message.hook = HOOK_KINDS[record.hook]
    if record.call:
        message.call = record.call
    time, seconds = message.time, int(record.time)
    time.seconds = seconds
    time.nanos = int((record.time - seconds) * 1e9)
    message.raw_path = record.raw_path
    if record.dropped:
        message.dropped = record.dropped
    if record.recompute:
        message.recompute = True
    for value in record.values:
        _value(value, message.values.add())


def _value(value: HookValue, message: event_pb2.ValueInfo) -> None:
    message.role = _ROLES[value.role]
    if value.key:
        message.key = value.key
    if value.note:
        message.note = value.note
    if value.dtype is not None:
        message.shape.extend(value.shape)
        message.dtype = value.dtype
    if value.stats is not None:
        stats(value.stats, message.stats)
    if value.histogram is not None:
        _histogram(value.histogram, message.histogram)
    if value.sample is not None:
        _sample(value.sample, message.sample)
    tensor = value.tensor
    if tensor is not None:
        message.tensor.CopyFrom(wire.spec_of(tensor.dtype, tensor.shape, len(tensor.data)))


def _histogram(record: HistogramRecord, message: event_pb2.Histogram) -> None:
    message.SetInParent()
    message.edges.extend(record.edges)
    message.counts.extend(record.counts)


def _sample(record: SampleRecord, message: event_pb2.Sample) -> None:
    message.SetInParent()
    message.elements = record.elements
    if record.mean_error is not None:
        message.mean_error = record.mean_error
