"""Any tensor to bytes and back: every dtype, layout and stride; what has none is refused with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn

from modscope.dtypes import DTYPES
from modscope.tensor import TensorData
from modscope_server.errors import BadRequest, NotMaterialized, UnknownDtype
from modscope_server.inspection import tensors
from modscope_server.inspection.tensors import (
    byte_view,
    dtype_name,
    dtype_named,
    from_data,
    nbytes,
    plain_data,
    snapshot,
    to_data,
    unreadable_reason,
)
from tests.models import unreadable

UNCOMMON = ["complex32", "float4_e2m1fn_x2", "bits8", "bits16", "uint4", "int4"]
"""Dtypes that the contract does not know and this torch may have."""

NAMES = [*DTYPES, *(name for name in UNCOMMON if hasattr(torch, name))]


def sample(name: str) -> Tensor:
    """A (3, 4) tensor of a dtype whose bytes are all different where it has enough of them."""
    dtype = getattr(torch, name)
    size = dtype.itemsize * 12
    raw = torch.arange(size, dtype=torch.int64).remainder(2 if name == "bool" else 251).to(torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex32 is experimental
        return raw.view(dtype).reshape(3, 4)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda t: t,
    "transposed": lambda t: t.t(),
    "every other": lambda t: t[:, ::2],
    "last rows": lambda t: t[1:],
    "0-dim": lambda t: t[1, 2],
    "empty": lambda t: t[:0],
    "expanded": lambda t: t[:1].expand(5, 4),
    "permuted": lambda t: t.reshape(3, 2, 2).permute(2, 0, 1),
}


def expected_bytes(t: Tensor) -> bytes:
    """The elements' bytes in row-major order, from numpy's view of the storage."""
    storage = numpy.frombuffer(bytes(t.untyped_storage().tolist()), numpy.uint8)
    items = storage.reshape(-1, t.itemsize)
    positions = numpy.zeros(tuple(t.shape), numpy.int64) + t.storage_offset()
    for dimension, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        shape = [1] * t.dim()
        shape[dimension] = size
        positions = positions + (numpy.arange(size) * stride).reshape(shape)
    return items[positions.reshape(-1)].tobytes()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_and_stride_round_trips(name: str, view: str) -> None:
    tensor = VIEWS[view](sample(name))
    data = to_data(tensor)
    assert (
        (data.dtype, data.shape) == (name, tuple(tensor.shape)) == (dtype_name(tensor), tuple(tensor.shape))
    )
    assert bytes(data.data) == expected_bytes(tensor)
    assert nbytes(tensor) == len(data.data)
    for received in (data, TensorData(data.dtype, data.shape, bytes(data.data))):
        back = from_data(received)
        assert (back.dtype, back.shape, back.device.type) == (tensor.dtype, tensor.shape, "cpu")
        assert bytes(to_data(back).data) == bytes(data.data)


@pytest.mark.parametrize("name", NAMES)
def test_a_snapshot_goes_where_it_is_told(name: str) -> None:
    for view in VIEWS.values():
        tensor = view(sample(name))
        arena = torch.zeros(nbytes(tensor) + 5, dtype=torch.uint8)
        for offset in (0, 3):
            place = arena[offset : offset + nbytes(tensor)]
            assert snapshot(tensor, out=place) is place
            assert bytes(byte_view(place)) == expected_bytes(tensor)
    with pytest.raises(ValueError, match="bytes"):
        snapshot(torch.ones(2), out=torch.zeros(7, dtype=torch.uint8))


def test_a_snapshot_is_a_copy_that_autograd_does_not_see() -> None:
    parameter = nn.Parameter(torch.ones(3))
    version = parameter._version
    taken = snapshot(parameter)
    assert (taken.dtype, taken.dim(), taken.requires_grad) == (torch.uint8, 1, False)
    with torch.no_grad():
        parameter.add_(1)
    assert torch.equal(taken.view(torch.float32), torch.ones(3))
    assert parameter._version == version + 1
    with torch.inference_mode():
        assert torch.equal(snapshot(torch.ones(2)).view(torch.float32), torch.ones(2))


def test_lazily_conjugated_and_negated_values_are_resolved() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    for lazy in (tensor.conj(), tensor.conj().imag, tensor.reshape(1, 2).mH):
        assert lazy.is_conj() or lazy.is_neg()
        back = from_data(to_data(lazy))
        assert torch.equal(back, lazy.resolve_conj().resolve_neg())
        assert (back.is_conj(), back.is_neg()) == (False, False)


def test_a_subclass_is_read_without_its_own_code() -> None:
    class Loud(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: object, types: object, args: object = (), kwargs: object = None
        ) -> object:
            raise RuntimeError("this subclass is not to be asked")

    assert torch.equal(snapshot(torch.ones(3).as_subclass(Loud)).view(torch.float32), torch.ones(3))


def test_more_than_two_gib_are_counted_without_being_made() -> None:
    huge = torch.zeros(1, dtype=torch.float64).expand(1 << 33)
    assert nbytes(huge) == 1 << 36
    far = torch.empty_strided((2, 1 << 32), (1, 0), dtype=torch.uint8)
    assert nbytes(far) == 1 << 33
    assert unreadable_reason(huge) == ""


@pytest.mark.parametrize("name", ["lazy", "meta", "sparse", "nested", "quantized"])
def test_what_has_no_plain_bytes_is_refused_with_the_reason(name: str) -> None:
    root = unreadable()
    tensor = {**root._parameters, **root._buffers}[name]
    assert tensor is not None
    with pytest.raises(NotMaterialized) as caught:
        snapshot(tensor)
    assert unreadable_reason(tensor) in caught.value.message
    assert name[:4] in unreadable_reason(tensor)
    assert caught.value.hint


def test_a_sharded_parameter_whose_storage_is_released_is_refused() -> None:
    whole = torch.ones(8)
    part = whole[4:]
    whole.untyped_storage().resize_(0)
    for tensor in (whole, part):
        with pytest.raises(NotMaterialized, match="released"):
            snapshot(tensor)
    assert to_data(torch.ones(0)).shape == (0,)


def test_fake_and_composed_tensors_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.two_tensor import TwoTensor

    with FakeTensorMode():
        assert unreadable_reason(torch.ones(2)).startswith("fake")
    assert "TwoTensor" in unreadable_reason(TwoTensor(torch.ones(2), torch.ones(2)))


def test_received_bytes_are_shared_only_where_they_may_be_written() -> None:
    buffer = bytearray(8)
    shared = from_data(TensorData("float32", (2,), buffer))
    shared.fill_(1.0)
    assert bytes(buffer) == numpy.ones(2, numpy.float32).tobytes()
    fixed = bytes(8)
    from_data(TensorData("float32", (2,), fixed)).fill_(1.0)
    assert fixed == bytes(8)
    odd = memoryview(bytearray(9))[1:]
    moved = from_data(TensorData("float64", (1,), odd))
    assert moved.data_ptr() % 8 == 0
    assert moved.tolist() == [0.0]


@pytest.mark.parametrize(
    "name", ["float33", "qint8", "quint4x2", "nn", "float32 ", "", "Tensor", "float", "_dynamo"]
)
def test_a_dtype_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UnknownDtype) as caught:
        from_data(TensorData(name, (1,), b"\0\0\0\0"))
    assert repr(name) in caught.value.message
    assert caught.value.field == "dtype"


def test_bools_are_zero_or_one() -> None:
    assert from_data(TensorData("bool", (3,), b"\0\1\1")).tolist() == [False, True, True]
    for data in (b"\0\2\1", b"\xff\0\0"):
        with pytest.raises(BadRequest, match="0 or 1"):
            from_data(TensorData("bool", (3,), data))


@pytest.mark.skipif(not hasattr(torch, "bits16"), reason="this torch has no bits16")
def test_a_length_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadRequest, match="has 6 bytes, got 5"):
        from_data(TensorData("bits16", (3,), bytes(5)))


def test_the_contracts_dtypes_are_torchs() -> None:
    for name, info in DTYPES.items():
        assert dtype_named(name) is getattr(torch, name)
        assert dtype_named(name).itemsize == info.size
        assert dtype_name(torch.empty(0, dtype=getattr(torch, name))) == name
    assert set(tensors._CARRIERS) == {dtype.itemsize for dtype in tensors._DTYPES.values()}


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (1, 3)])
def test_a_size_of_one_may_have_any_stride(shape: tuple[int, ...]) -> None:
    base = torch.arange(3.0)[: max(shape)]
    turned = base.as_strided(shape, [7 if size == 1 else 1 for size in shape])
    alone = torch.tensor(2.0).expand(1)
    for tensor in (turned, alone):
        expected = tensor.clone(memory_format=torch.contiguous_format).numpy().tobytes()
        assert bytes(snapshot(tensor).numpy()) == expected
        assert bytes(to_data(tensor).data) == expected
        shared = plain_data(tensor)
        assert shared is not None
        assert bytes(shared.data) == expected
        out = torch.empty(tensor.nbytes, dtype=torch.uint8)
        assert bytes(snapshot(tensor, out).numpy()) == expected
