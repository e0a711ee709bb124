"""Arrays: every dtype both ways, bit for bit as PyTorch has it, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy
import pytest
import torch

from modscope.dtypes import DTYPES
from modscope.tensor import TensorData, byte_size
from modscope.v1 import tensor_pb2
from modscope.wire import spec_of
from modscope_client import arrays
from modscope_client.errors import Internal, InvalidArgument
from modscope_client.memory import Memory
from tests.end_to_end.serving import raw

SHAPES = [(), (0,), (3, 0, 2), (1,), (2, 3, 4)]


def tensor(name: str, shape: tuple[int, ...], *, seed: int = 0) -> torch.Tensor:
    """A tensor of random bits, apart from bools."""
    size = byte_size(name, shape)
    assert size is not None
    bits = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    if name == "bool":
        bits %= 2
    return bits.view(getattr(torch, name)).reshape(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_both_ways(name: str, shape: tuple[int, ...]) -> None:
    given = tensor(name, shape)
    made = arrays.tensor_of(given)
    assert (made.dtype, made.shape, bytes(made.data)) == (name, shape, raw(given))
    array = arrays.array_of(made)
    assert isinstance(array, numpy.ndarray)
    assert (array.dtype.name, array.shape, array.tobytes()) == (name, shape, raw(given))
    again = arrays.tensor_of(array)
    assert (again.dtype, again.shape, bytes(again.data)) == (name, shape, raw(given))
    assert arrays.spec_of(given) == arrays.spec_of(array) == arrays.spec_of(made) == (name, shape)


@pytest.mark.parametrize(
    "name", ["float64", "float32", "float16", "int8", "int64", "uint8", "bool", "complex64"]
)
def test_dtypes_are_numpys_own_where_numpy_has_them(name: str) -> None:
    array, _ = arrays.empty(name, (2,), byte_size(name, (2,)) or 0)
    assert isinstance(array, numpy.ndarray)
    assert array.dtype == numpy.dtype(name) and array.dtype.isnative
    assert repr(array.dtype) == repr(numpy.dtype(name))


def test_values_are_the_same_not_only_bits() -> None:
    values = [0.0, 1.5, -2.5, float("inf")]
    for name in ("bfloat16", "float16", "float8_e5m2"):
        array = arrays.array_of(arrays.tensor_of(torch.tensor(values).to(getattr(torch, name))))
        assert isinstance(array, numpy.ndarray)
        assert array.astype(numpy.float64).tolist() == values


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.t(),
        lambda t: t[::2],
        lambda t: t[:, 1:],
        lambda t: t.expand(3, *t.shape),
        lambda t: t.detach().requires_grad_(),
        lambda t: torch.nn.Parameter(t),
        lambda t: t.to(torch.complex64).conj(),
        lambda t: torch.view_as_complex(torch.stack([t, t], -1)).conj().imag,
    ],
)
def test_views_of_torch_tensors(view: Any) -> None:
    given = view(torch.randn(4, 6))
    made = arrays.tensor_of(given)
    assert (made.shape, bytes(made.data)) == (tuple(given.shape), raw(given))


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange(12, dtype="f4").reshape(3, 4).T,
        numpy.arange(12, dtype=">f4"),
        numpy.arange(12, dtype=">i8")[::3],
        numpy.broadcast_to(numpy.float64(3), (2, 2)),
        numpy.arange(6).astype(ml_dtypes.bfloat16)[::-1],
    ],
    ids=["transposed", "big-endian", "big-endian strided", "broadcast", "reversed bfloat16"],
)
def test_views_of_numpy_arrays(array: Any) -> None:
    made = arrays.array_of(arrays.tensor_of(array))
    assert isinstance(made, numpy.ndarray)
    assert made.shape == array.shape and made.dtype == array.dtype.newbyteorder("<")
    assert made.astype(float).tolist() == array.astype(float).tolist()


def test_a_contiguous_array_is_not_copied() -> None:
    array = numpy.zeros(1000, "f4")
    data = arrays.tensor_of(array).data
    array[0] = 1
    assert bytes(data[:4]) == numpy.float32(1).tobytes()


def test_lists_and_numbers() -> None:
    assert arrays.tensor_of([[1, 2], [3, 4]]).dtype == "int64"
    assert arrays.tensor_of(2.5).shape == ()
    assert arrays.tensor_of([True, False]).dtype == "bool"


@pytest.mark.parametrize(
    ("make", "reason"),
    {
        "text": (lambda: "text", "UNKNOWN_DTYPE"),
        "none": (lambda: None, "UNKNOWN_DTYPE"),
        "ragged": (lambda: [[1], [2, 3]], "BAD_REQUEST"),
        "objects": (lambda: [object()], "UNKNOWN_DTYPE"),
        "dates": (lambda: numpy.zeros(2, "datetime64[s]"), "UNKNOWN_DTYPE"),
        "fields": (lambda: numpy.zeros(2, [("a", "f4")]), "UNKNOWN_DTYPE"),
        "int4": (lambda: numpy.zeros(2, ml_dtypes.int4), "UNKNOWN_DTYPE"),
        "complex32": (lambda: torch.zeros(2, dtype=torch.complex32), "UNKNOWN_DTYPE"),
        "sparse": (lambda: torch.eye(2).to_sparse(), "UNKNOWN_DTYPE"),
        "meta": (lambda: torch.empty(2, device="meta"), "UNKNOWN_DTYPE"),
        "quantized": (
            lambda: torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8),
            "UNKNOWN_DTYPE",
        ),
    }.values(),
)
@pytest.mark.filterwarnings("ignore")  # PyTorch warns of nearly all of these by itself
def test_what_is_no_array_is_refused(make: Callable[[], Any], reason: str) -> None:
    for function in (arrays.tensor_of, arrays.spec_of):
        with pytest.raises(InvalidArgument) as refusal:
            function(make())
        assert refusal.value.reason == reason
        assert refusal.value.hint


def test_an_unknown_dtype_stays_raw_bytes_with_its_name() -> None:
    given = TensorData("float4_e2m1fn_x2", (3,), b"abc")
    assert arrays.array_of(given) is given
    assert arrays.tensor_of(given) is given
    array, target = arrays.empty("float4_e2m1fn_x2", (3,), 3)
    target[:] = b"xyz"
    assert isinstance(array, TensorData) and bytes(array.data) == b"xyz"


def test_what_is_like_a_tensor() -> None:
    likes: list[Any] = [numpy.zeros(2), numpy.float32(1), torch.zeros(2), TensorData("bool", (), b"\0")]
    others: list[Any] = [1, 1.5, [1], "x", None, (numpy.zeros(2),)]
    assert all(map(arrays.is_tensor_like, likes))
    assert not any(map(arrays.is_tensor_like, others))


def test_without_torch_nothing_is_a_torch_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert not arrays.is_tensor_like(object())


def test_what_arrives_is_an_array_of_its_own() -> None:
    data = bytearray(numpy.arange(3, dtype="f4").tobytes())
    array = arrays.received(spec_of("float32", (3,)), memoryview(data))
    assert isinstance(array, numpy.ndarray)
    data[:] = bytes(12)
    assert array.tolist() == [0, 1, 2] and array.flags.writeable and array.flags.owndata
    wrong: list[tuple[int, ...]] = [(4,), (-1, 7), (2, 2)]
    for shape in wrong:
        with pytest.raises(Internal, match="12 bytes"):
            arrays.received(tensor_pb2.TensorSpec(dtype_name="float32", shape=shape), data)
    empty: list[tuple[int, ...]] = [(0,), (2, 0, 3)]
    for shape in empty:
        assert arrays.received(spec_of("bfloat16", shape), b"").shape == shape
    with pytest.raises(Internal):
        arrays.received(spec_of("float32", (1,)), b"abc")
    unknown = arrays.received(spec_of("float4_e2m1fn_x2", (3,), 3), b"abc")
    assert isinstance(unknown, TensorData) and bytes(unknown.data) == b"abc"


def test_room_for_many_tensors() -> None:
    mebibyte = 1 << 20
    names = ["float32", "bfloat16", "bool", "float4_e2m1fn_x2"]
    specs = [(names[i % 4], (size,), size * (4, 2, 1, 1)[i % 4]) for i, size in enumerate([3, 0, 7, 5] * 30)]
    specs += [("uint8", (size * mebibyte,), size * mebibyte) for size in (1, 20, 3, 3, 3)]
    made = arrays.empties(specs, Memory())
    assert [(str(array.dtype), array.shape) for array, _ in made] == [
        (name, shape) for name, shape, _ in specs
    ]
    assert [len(target) for _, target in made] == [size for _, _, size in specs]
    for index, (_, target) in enumerate(made):
        target[:] = bytes([index % 256]) * len(target)
    for index, (_, target) in enumerate(made):
        assert not target or set(target[:1]) == {index % 256} == set(target[-1:])
    filled = [array for array, _ in made if isinstance(array, numpy.ndarray) and array.size]
    assert all(array.flags.aligned and array.flags.writeable for array in filled)
    assert len({id(array.base) for array in filled}) == 3, "two blocks of small ones, and the large one"
    assert arrays.empties([], Memory()) == []
