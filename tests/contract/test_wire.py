"""The hand-joined frame against the generated classes, in both directions."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from modscope.dtypes import DTYPES
from modscope.fields import varint
from modscope.tensor import TensorData, byte_size
from modscope.v1 import state_dict_service_pb2, tensor_pb2
from modscope.wire import Frame, decoder, encode, spec_from, spec_of, tensor_from
from tests.contract.messages import bulk_classes, header_messages

BULK = bulk_classes()
EXPECTED_BULK = {
    "ForwardRequest",
    "ForwardResponse",
    "ReadTensorResponse",
    "ReadTensorsResponse",
    "WriteTensorRequest",
    "DownloadResponse",
    "UploadRequest",
    "TransactRequest",
    "WatchResponse",
    "InterveneRequest",
}
HOLDERS = (bytes, bytearray, memoryview)
KEY = st.sampled_from(["", "w", "mlp.w1.weight"])
every_bulk_class = pytest.mark.parametrize("kind", BULK, ids=lambda kind: str(kind.__name__))


def with_data(header: Message, data: bytes) -> Any:
    """The message as the generated class holds it, bulk bytes included."""
    whole: Any = type(header).FromString(header.SerializeToString())
    whole.data = data
    return whole


def records(message: Message) -> list[bytes]:
    """The wire bytes of a message, cut into its top-level fields."""
    cut = []
    for field, _ in message.ListFields():
        alone = type(message)()
        alone.MergeFrom(message)
        for other, _ in message.ListFields():
            if other.number != field.number:
                alone.ClearField(other.name)
        cut.append(alone.SerializeToString())
    return cut


def test_all_bulk_messages_are_found() -> None:
    assert {kind.__name__ for kind in BULK} == EXPECTED_BULK


@every_bulk_class
@given(draw=st.data(), data=st.binary(max_size=300), holder=st.sampled_from(HOLDERS))
def test_encode_writes_what_the_generated_class_writes(
    kind: type[Message], draw: st.DataObject, data: bytes, holder: type
) -> None:
    header = draw.draw(header_messages(kind.DESCRIPTOR))
    assert encode(Frame(header, holder(data))) == with_data(header, data).SerializeToString()


@every_bulk_class
@given(draw=st.data(), data=st.binary(max_size=300))
def test_decode_reads_what_the_generated_class_writes(
    kind: type[Message], draw: st.DataObject, data: bytes
) -> None:
    header = draw.draw(header_messages(kind.DESCRIPTOR))
    frame = decoder(kind.FromString)(with_data(header, data).SerializeToString())
    assert frame.header == header
    assert frame.data == data


@every_bulk_class
@given(draw=st.data(), data=st.binary(max_size=300))
def test_the_generated_class_reads_what_encode_writes(
    kind: type[Message], draw: st.DataObject, data: bytes
) -> None:
    header = draw.draw(header_messages(kind.DESCRIPTOR))
    assert kind.FromString(encode(Frame(header, data))) == with_data(header, data)


@every_bulk_class
@given(draw=st.data(), payloads=st.lists(st.binary(max_size=40), max_size=3))
def test_fields_may_come_in_any_order_and_the_last_data_wins(
    kind: type[Message], draw: st.DataObject, payloads: list[bytes]
) -> None:
    header = draw.draw(header_messages(kind.DESCRIPTOR))
    bulk = [encode(Frame(kind(), payload)) for payload in payloads]
    mixed = b"".join(draw.draw(st.permutations(records(header) + bulk)))
    expected: Any = kind.FromString(mixed)
    frame = decoder(kind.FromString)(mixed)
    assert frame.data == expected.data
    expected.ClearField("data")
    assert frame.header == expected


@every_bulk_class
@given(
    draw=st.data(), data=st.binary(max_size=20), number=st.integers(16, 1 << 20), value=st.binary(max_size=9)
)
def test_fields_of_a_later_version_are_kept_aside(
    kind: type[Message], draw: st.DataObject, data: bytes, number: int, value: bytes
) -> None:
    header = draw.draw(header_messages(kind.DESCRIPTOR))
    later = [
        varint(number << 3) + varint(len(value)),
        varint(number << 3 | 1) + value[:8].ljust(8, b"\0"),
        varint(number << 3 | 2) + varint(len(value)) + value,
        varint(number << 3 | 5) + value[:4].ljust(4, b"\0"),
    ]
    parts = draw.draw(st.permutations([*records(header), encode(Frame(kind(), data)), *later]))
    frame = decoder(kind.FromString)(b"".join(parts))
    assert frame.data == data
    assert {field.name: value for field, value in frame.header.ListFields()} == {
        field.name: value for field, value in header.ListFields()
    }
    assert len(UnknownFieldSet(frame.header)) == len(later)


@every_bulk_class
@given(draw=st.data(), data=st.binary(min_size=1, max_size=40))
def test_a_message_cut_short_is_refused_or_is_a_shorter_message(
    kind: type[Message], draw: st.DataObject, data: bytes
) -> None:
    whole = encode(Frame(draw.draw(header_messages(kind.DESCRIPTOR)), data))
    agrees_with_generated_class(kind, whole[: draw.draw(st.integers(0, len(whole) - 1))])


@every_bulk_class
@given(noise=st.binary(max_size=60))
def test_noise_is_refused_or_is_what_the_generated_class_sees(kind: type[Message], noise: bytes) -> None:
    agrees_with_generated_class(kind, noise)


@every_bulk_class
@given(draw=st.data(), data=st.binary(min_size=1, max_size=40), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_is_what_the_generated_class_sees(
    kind: type[Message], draw: st.DataObject, data: bytes, byte: int
) -> None:
    whole = bytearray(encode(Frame(draw.draw(header_messages(kind.DESCRIPTOR)), data)))
    whole[draw.draw(st.integers(0, len(whole) - 1))] = byte
    agrees_with_generated_class(kind, bytes(whole))


def agrees_with_generated_class(kind: type[Message], data: bytes) -> None:
    """The decoder refuses what the generated class refuses; what both take, they read alike."""
    try:
        expected: Any = kind.FromString(data)
    except DecodeError:
        with pytest.raises(ValueError, match=r"\w"):
            decoder(kind.FromString)(data)
        return
    refusal = ""
    frame = None
    try:
        frame = decoder(kind.FromString)(data)
    except ValueError as error:
        refusal = str(error)
    if frame is None:
        assert "wire type 3" in refusal, "only proto2's groups may be refused beyond what protobuf refuses"
        return
    assert frame.data == expected.data
    expected.ClearField("data")
    assert frame.header == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x7a\x05abc", "truncated"),
        (b"\x7a", "truncated"),
        (b"\x80" * 11, "varint"),
        (b"\x7b", "wire type 3"),
        (b"\x7f", "wire type 7"),
        (b"\x09\x00", "truncated"),
        (b"\x0d\x00", "truncated"),
    ],
    ids=[
        "length beyond the end",
        "no length",
        "endless varint",
        "group",
        "type 7",
        "half a fixed64",
        "half a fixed32",
    ],
)
def test_malformed_bytes_say_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(state_dict_service_pb2.DownloadResponse.FromString)(data)


def test_decoded_data_is_a_view_of_the_wire_bytes() -> None:
    sent = encode(Frame(state_dict_service_pb2.DownloadResponse(step=3), b"x" * 1000))
    data = decoder(state_dict_service_pb2.DownloadResponse.FromString)(sent).data
    assert isinstance(data, memoryview)
    assert data.obj is sent


def test_a_view_of_wider_elements_is_sent_as_its_bytes() -> None:
    view = memoryview(bytes(8)).cast("q")
    header = state_dict_service_pb2.DownloadResponse(step=3)
    assert encode(Frame(header, view)) == with_data(header, bytes(8)).SerializeToString()


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 1 << 20), max_size=5).map(tuple))
def test_specs_of_known_dtypes_lead_back(name: str, shape: tuple[int, ...]) -> None:
    size = byte_size(name, shape)
    assert size is not None
    if size < 1 << 63:
        assert spec_from(spec_of(name, shape)) == (name, shape, size)


def test_a_spec_of_an_unknown_dtype_keeps_its_name_and_size() -> None:
    spec = spec_of("float4_e2m1fn_x2", (3,), 3)
    assert spec.dtype == tensor_pb2.DTYPE_UNSPECIFIED
    assert spec_from(spec) == ("float4_e2m1fn_x2", (3,), 3)


def test_a_foreign_client_may_leave_out_name_and_size() -> None:
    spec = tensor_pb2.TensorSpec(dtype=tensor_pb2.DTYPE_BFLOAT16, shape=[2, 3])
    assert spec_from(spec) == ("bfloat16", (2, 3), 12)


def test_a_foreign_client_may_leave_out_the_number() -> None:
    assert spec_from(tensor_pb2.TensorSpec(dtype_name="int8", shape=[2])) == ("int8", (2,), 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (tensor_pb2.TensorSpec(shape=[1]), "needs a dtype"),
        (tensor_pb2.TensorSpec(dtype=tensor_pb2.DTYPE_INT8, dtype_name="int16"), "int8 and dtype_name int16"),
        (
            tensor_pb2.TensorSpec(dtype_name="int16", shape=[2, 2], byte_size=7),
            r"int16.*\[2, 2\].*8 bytes, not 7",
        ),
        (tensor_pb2.TensorSpec(dtype_name="int16", shape=[-1]), "negative"),
    ],
    ids=["no dtype", "two dtypes", "wrong size", "negative dimension"],
)
def test_a_spec_that_contradicts_itself_is_refused(spec: tensor_pb2.TensorSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_from(spec)


def test_a_tensor_is_made_of_spec_and_bytes() -> None:
    assert tensor_from(spec_of("int16", (2,)), b"\1\0\2\0") == TensorData("int16", (2,), b"\1\0\2\0")


def test_bytes_that_do_not_fit_the_spec_are_refused() -> None:
    with pytest.raises(ValueError, match="4 bytes, got 3"):
        tensor_from(spec_of("int16", (2,)), b"abc")
