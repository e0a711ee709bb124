"""Tensors as both sides hand them over: lengths, chunks, digests."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modscope.dtypes import DTYPES
from modscope.tensor import CHUNK_BYTES, TensorData, byte_size, chunks, digest

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(st.sampled_from(sorted(DTYPES)), shapes)
def test_byte_size_is_item_size_times_elements(name: str, shape: tuple[int, ...]) -> None:
    assert byte_size(name, shape) == DTYPES[name].size * math.prod(shape)


def test_byte_size_beyond_what_32_bits_hold() -> None:
    assert byte_size("float64", (1 << 20, 1 << 12)) == 1 << 35


def test_byte_size_of_an_unknown_dtype_is_unknown() -> None:
    assert byte_size("float4_e2m1fn_x2", (3,)) is None


@pytest.mark.parametrize("dtype", ["float32", "float4_e2m1fn_x2"])
def test_a_negative_dimension_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match=r"negative dimension: \[2, -1\]"):
        byte_size(dtype, (2, -1))


@given(st.sampled_from(sorted(DTYPES)), shapes, st.integers(-1, 1))
def test_a_tensor_has_as_many_bytes_as_its_shape_says(name: str, shape: tuple[int, ...], off: int) -> None:
    size = DTYPES[name].size * math.prod(shape) + off
    if off and size >= 0:
        with pytest.raises(ValueError, match=f"{name}.*{size}"):
            TensorData(name, shape, bytes(size))
    elif not off:
        assert len(TensorData(name, shape, bytes(size)).data) == size


def test_a_tensor_of_an_unknown_dtype_takes_any_bytes() -> None:
    assert TensorData("float4_e2m1fn_x2", (3,), b"ab").data == b"ab"


@given(st.binary(max_size=200), st.integers(1, 64))
def test_chunks_join_to_the_whole_and_keep_the_limit(data: bytes, limit: int) -> None:
    parts = list(chunks(data, limit))
    assert b"".join(parts) == data
    assert all(len(part) == limit for part in parts[:-1])
    assert all(0 < len(part) <= limit for part in parts)


def test_chunks_copy_nothing() -> None:
    data = bytearray(CHUNK_BYTES + 1)
    parts = list(chunks(data))
    assert [len(part) for part in parts] == [CHUNK_BYTES, 1]
    data[-1] = 7
    assert parts[1][0] == 7


def test_chunks_of_a_view_of_wider_elements_are_its_bytes() -> None:
    array = np.arange(6, dtype=np.float64)
    assert b"".join(chunks(array.data, 7)) == array.tobytes()


def test_digest_covers_dtype_shape_and_bytes() -> None:
    expected = hashlib.sha256(b"int16" + b"[1, 2]" + b"\1\0\2\0").hexdigest()
    assert digest(TensorData("int16", (1, 2), b"\1\0\2\0")) == f"sha256:{expected}"


def test_digests_of_different_tensors_differ() -> None:
    tensors = [
        TensorData("int16", (1, 2), b"\1\0\2\0"),
        TensorData("int16", (2, 1), b"\1\0\2\0"),
        TensorData("uint16", (1, 2), b"\1\0\2\0"),
        TensorData("int16", (1, 2), b"\1\0\3\0"),
        TensorData("int16", (), b"\1\0"),
        TensorData("int16", (0,), b""),
    ]
    assert len({digest(tensor) for tensor in tensors}) == len(tensors)


def test_a_digest_does_not_depend_on_what_holds_the_bytes() -> None:
    data = b"\1\0\2\0"
    assert (
        len({digest(TensorData("int16", (2,), kind(data))) for kind in (bytes, bytearray, memoryview)}) == 1
    )
