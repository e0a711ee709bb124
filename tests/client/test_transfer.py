"""Tensors in a stream: filled by chunks of any size, whole or refused."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modscope import wire
from modscope.tensor import CHUNK_BYTES, TensorData
from modscope.v1 import event_pb2, hook_service_pb2, model_service_pb2, parameter_service_pb2
from modscope.wire import Frame
from modscope_client.errors import Internal
from modscope_client.memory import Memory
from modscope_client.transfer import Arrivals, Events, Fill, forward_frames, header, tensor_frames

Response = parameter_service_pb2.ReadTensorsResponse


def filled(sizes: list[int]) -> tuple[Fill, list[bytearray]]:
    targets = [bytearray(size) for size in sizes]

    def put(index: int, offset: int, data: memoryview) -> None:
        targets[index][offset : offset + len(data)] = data

    fill = Fill(put)
    fill.expect(sizes)
    return fill, targets


@given(st.lists(st.binary(max_size=20), max_size=6), st.data())
def test_any_cut_fills_the_same(tensors: list[bytes], data: st.DataObject) -> None:
    fill, targets = filled([len(tensor) for tensor in tensors])
    rest = b"".join(tensors)
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        fill.add(rest[:count])
        rest = rest[count:]
    fill.finish()
    assert targets == [bytearray(tensor) for tensor in tensors]
    assert fill.done == sum(map(len, tensors)) and fill.complete == len(tensors)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.booleans())
def test_tensors_begin_where_they_should(sizes: list[int], tell_empty_ones: bool) -> None:
    fill, _ = filled(sizes)
    for index, size in enumerate(sizes):
        if size or tell_empty_ones:
            fill.begin(index)
            fill.add(b"x" * size)
    fill.finish()


def test_what_contradicts_itself_is_refused() -> None:
    fill, _ = filled([2, 2])
    fill.add(b"x")
    with pytest.raises(Internal, match="tensor 1 begins"):
        fill.begin(1)
    with pytest.raises(Internal, match="1 bytes before the end of tensor 0"):
        fill.finish()
    fill.add(b"xxx")
    fill.finish()
    for index in (0, 2, -1):
        with pytest.raises(Internal, match="begins"):
            fill.begin(index)
    with pytest.raises(Internal, match="3 bytes beyond"):
        fill.add(b"xxx")


def announce(key: str, array: Any, data: bytes = b"") -> Frame[Response]:
    tensor = TensorData(str(array.dtype), array.shape, array.tobytes())
    return Frame(Response(step=5, tensor=header(key, tensor)), data)


def test_arrays_arrive() -> None:
    first, second = numpy.arange(4, dtype="f4"), numpy.zeros((0, 3), "i8")
    came: Arrivals[Response] = Arrivals()
    came.take(Frame(Response(step=5)))
    came.take(announce("a", first, first.tobytes()[:6]))
    came.take(Frame(Response(), first.tobytes()[6:]))
    came.take(announce("b", second))
    arrays = came.finish(2)
    assert came.head.step == 5
    assert [(array.dtype, array.shape) for array in arrays] == [(first.dtype, (4,)), (second.dtype, (0, 3))]
    assert numpy.array_equal(arrays[0], first)  # type: ignore[arg-type]


def test_arrays_that_do_not_arrive() -> None:
    array = numpy.arange(4, dtype="f4")
    came: Arrivals[Response] = Arrivals()
    with pytest.raises(Internal, match="before it began"):
        came.head  # noqa: B018
    came.take(announce("a", array, b"xx"))
    with pytest.raises(Internal, match="14 bytes before the end"):
        came.take(announce("b", array))
    came.take(Frame(Response(), b"x" * 14))
    with pytest.raises(Internal, match="1 of 2"):
        came.finish(2)
    with pytest.raises(Internal, match="beyond"):
        came.take(Frame(Response(), b"x"))


def event(seq: int, *sizes: int | None) -> event_pb2.Event:
    values = []
    for size in sizes:
        value = event_pb2.ValueInfo()
        if size is not None:
            value.dtype = "uint8"
            value.tensor.CopyFrom(wire.spec_of("uint8", (size,)))
        values.append(value)
    return event_pb2.Event(seq=seq, values=values)


def took(events: Events, message: hook_service_pb2.WatchResponse, data: bytes = b"") -> list[int]:
    return [event.seq for event in events.take(Frame(message, data))]


def test_events_are_given_when_their_tensors_are_whole() -> None:
    response = hook_service_pb2.WatchResponse
    events = Events(Memory())
    assert took(events, response(events=[event(0), event(1, None)])) == [0, 1]
    assert took(events, response(events=[event(2), event(3, 2, None, 3), event(4, 0), event(5, 1)])) == [2]
    assert took(events, response(), b"aa") == []
    assert took(events, response(heartbeat=hook_service_pb2.WatchHeartbeat())) == []
    assert took(events, response(), b"bbb") == [3, 4]
    (last,) = events.take(Frame(response(), b"c"))
    assert last.seq == 5 and last.values[0].array.tobytes() == b"c"  # type: ignore[union-attr]
    assert took(events, response(events=[event(6, 1)]), b"d") == [6]
    assert took(events, response(events=[event(7, 2)]), b"e") == []
    with pytest.raises(Internal):
        took(events, response(events=[event(8)]))


def test_large_arrays_are_made_of_memory_that_nobody_sees_any_more() -> None:
    response = hook_service_pb2.WatchResponse
    size = 1 << 20
    events = Events(Memory())

    def next_array(seq: int) -> Any:
        (made,) = events.take(Frame(response(events=[event(seq, size)]), bytes([seq]) * size))
        return made.values[0].array

    first, second = next_array(1), next_array(2)
    view, place = first[7:9], first.ctypes.data
    del first
    third = next_array(3)
    assert third.ctypes.data != place and view.tolist() == [1, 1] and set(second.tobytes()) == {2}
    del view
    assert next_array(4).ctypes.data == place
    assert set(third.tobytes()) == {3}


def test_a_write_is_one_message_where_it_fits() -> None:
    first = parameter_service_pb2.WriteTensorRequest(path="w")
    small = TensorData("uint8", (3,), b"abc")
    assert list(tensor_frames(first, small)) == [Frame(first, memoryview(b"abc"))]
    assert list(tensor_frames(first, None)) == [Frame(first, b"")]
    large = TensorData("uint8", (CHUNK_BYTES * 2 + 1,), bytes(CHUNK_BYTES * 2 + 1))
    sizes = [len(frame.data) for frame in tensor_frames(first, large)]
    assert sizes == [CHUNK_BYTES, CHUNK_BYTES, 1]


def test_a_forward_announces_each_tensor() -> None:
    first = model_service_pb2.ForwardRequest(tensors=3)
    tensors = [
        TensorData("uint8", (CHUNK_BYTES + 1,), bytes(CHUNK_BYTES + 1)),
        TensorData("uint8", (0,), b""),
        TensorData("uint8", (1,), b"x"),
    ]
    frames = list(forward_frames(first, tensors))
    assert frames[0] == Frame(first)
    told = [(frame.header.tensor.key, len(frame.data)) for frame in frames[1:]]
    assert told == [("0", CHUNK_BYTES), ("", 1), ("1", 0), ("2", 1)]
    came: Arrivals[Any] = Arrivals()
    for frame in frames[1:]:
        came.take(frame)
    assert [array.shape for array in came.finish(3)] == [(CHUNK_BYTES + 1,), (0,), (1,)]
