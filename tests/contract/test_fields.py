"""Fields that are written by hand are those that the generated classes write."""

from __future__ import annotations

import math

from google.protobuf import timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from modscope import fields
from modscope.v1 import event_pb2, tensor_pb2
from modscope.wire import Encoded, Frame, encode

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(INT64)
def test_a_whole_number_is_written_as_int64(value: int) -> None:
    assert fields.integer(1, value) == tensor_pb2.Stats(count=value).SerializeToString()
    assert fields.varint(value) == fields.fresh_varint(value)


def test_a_default_is_not_written() -> None:
    assert (
        fields.integer(3, 0) == fields.text(3, "") == fields.doubles(3, ()) == fields.integers(3, ()) == b""
    )
    assert fields.text(4, "", presence=True) == event_pb2.ValueInfo(dtype="").SerializeToString()


@given(st.floats())
def test_a_real_number_is_present_whatever_it_is(value: float) -> None:
    read = tensor_pb2.Stats.FromString(fields.real(2, value))
    assert read.HasField("mean")
    assert read.mean == value or (math.isnan(read.mean) and math.isnan(value))


@given(st.lists(st.floats(allow_nan=False)), st.lists(INT64))
def test_lists_are_packed(edges: list[float], counts: list[int]) -> None:
    expected = event_pb2.Histogram(edges=edges, counts=counts)
    assert fields.doubles(1, edges) + fields.integers(2, counts) == expected.SerializeToString()


@given(st.text())
def test_text_is_utf_8(value: str) -> None:
    assert fields.text(2, value) == tensor_pb2.TensorSpec(dtype_name=value).SerializeToString()


def test_text_that_utf_8_does_not_have_is_spelled_out() -> None:
    assert tensor_pb2.TensorSpec.FromString(fields.text(2, "a\ud800")).dtype_name == "a\\ud800"


def test_a_message_in_a_message_is_present_though_it_is_empty() -> None:
    event = event_pb2.Event.FromString(fields.message(8, b""))
    assert event == event_pb2.Event(time=timestamp_pb2.Timestamp())
    assert event.HasField("time")


@given(st.binary(max_size=300))
def test_a_header_that_is_encoded_already_goes_out_as_it_is(data: bytes) -> None:
    header = tensor_pb2.TensorHeader(key="k")
    frame = Frame(Encoded(header.SerializeToString()), data)
    assert encode(frame) == encode(Frame(header, data))
