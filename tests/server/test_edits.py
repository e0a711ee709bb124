"""Writes, freezing and thawing: what they do, what they refuse, and that a refusal changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modscope.tensor import TensorData
from modscope_server.errors import (
    BadRequest,
    DtypeMismatch,
    ModscopeServerError,
    NotFinite,
    NotMaterialized,
    ShapeMismatch,
    UnknownDtype,
)
from modscope_server.inspection import edits
from modscope_server.inspection.backup import same_bits
from modscope_server.inspection.edits import (
    checked_source,
    overlaps_itself,
    write_checked,
    write_tensor,
)
from modscope_server.inspection.parameters import find_tensor
from modscope_server.inspection.records import LocatedTensor
from modscope_server.inspection.tensors import to_data
from tests.models import MLP, ZOO, unreadable


def target(tensor: torch.Tensor) -> LocatedTensor:
    return LocatedTensor("t", "t", "t", tensor, nn.Module(), "", True)


def sent(value: Any, dtype: torch.dtype | None = None) -> TensorData:
    return to_data(torch.as_tensor(value, dtype=dtype))


@pytest.fixture
def model() -> MLP:
    torch.manual_seed(0)
    return MLP()


def test_a_write_keeps_the_tensor_and_training_goes_on_with_it(model: MLP) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before, pointer = model.w1.weight, model.w1.weight.data_ptr()
    write_tensor(find_tensor(model, "w1.weight"), sent([[1.0], [2.0], [3.0]]))
    assert model.w1.weight is before
    assert model.w1.weight.data_ptr() == pointer
    assert model.w1.weight.requires_grad
    assert model.w1.weight.tolist() == [[1.0], [2.0], [3.0]]
    model(torch.ones(4, 1)).sum().backward()
    optimizer.step()
    assert model.w1.weight.tolist() != [[1.0], [2.0], [3.0]]


def test_shape_and_dtype_of_both_are_told_before_anything_changes(model: MLP) -> None:
    before, version = model.w1.weight.detach().clone(), model.w1.weight._version
    with pytest.raises(ShapeMismatch) as shape:
        write_tensor(find_tensor(model, "w1.weight"), sent(torch.zeros(5, 4)))
    assert shape.value.message == "w1.weight is float32 [3, 1], got float32 [5, 4]"
    assert (shape.value.details["expected"], shape.value.details["got"]) == ("[3, 1]", "[5, 4]")
    assert "[3, 1]" in shape.value.hint
    for wrong in ((1,), (3,), (1, 3), (3, 1, 1), ()):
        with pytest.raises(ShapeMismatch):
            write_tensor(find_tensor(model, "w1.weight"), sent(torch.zeros(wrong)), cast=True)
    with pytest.raises(DtypeMismatch) as dtype:
        write_tensor(find_tensor(model, "w1.weight"), sent(torch.zeros(3, 1, dtype=torch.float64)))
    assert dtype.value.message == "w1.weight is float32 [3, 1], got float64 [3, 1]"
    assert "cast" in dtype.value.hint
    assert torch.equal(model.w1.weight, before)
    assert model.w1.weight._version == version


def test_a_write_takes_elements_or_one_number(model: MLP) -> None:
    place = find_tensor(model, "w1.bias")
    write_tensor(place, fill=0.25)
    assert model.w1.bias.tolist() == [0.25] * 3
    write_tensor(place, fill=2)
    write_tensor(place, fill=True)
    assert model.w1.bias.tolist() == [1.0] * 3
    for arguments in ({}, {"data": sent([1.0, 2.0, 3.0]), "fill": 0.0}):
        with pytest.raises(BadRequest, match="either elements or one number"):
            write_tensor(place, **arguments)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="fill takes a number, not 'zero'"):
        write_tensor(place, fill="zero")
    with pytest.raises(BadRequest, match="more than 64 bits"):
        write_tensor(place, fill=2**64)
    with pytest.raises(BadRequest, match="a bool is one byte"):
        write_tensor(target(torch.tensor([True])), TensorData("bool", (1,), b"\x02"))
    with pytest.raises(UnknownDtype):
        write_tensor(place, TensorData("float13", (3,), bytes(12)))
    assert model.w1.bias.tolist() == [1.0] * 3


def test_nan_and_inf_are_refused_unless_they_are_meant(model: MLP) -> None:
    place = find_tensor(model, "w2.weight")
    before = model.w2.weight.detach().clone()
    values = before.clone()
    values[1, 2], values[2, 0] = math.nan, -math.inf
    with pytest.raises(
        NotFinite, match=r"2 of 9 elements for w2\.weight are nan or inf, the first at \[1, 2\]"
    ):
        write_tensor(place, to_data(values))
    with pytest.raises(NotFinite, match=r"the value for w2\.weight is nan"):
        write_tensor(place, fill=math.nan)
    assert torch.equal(model.w2.weight, before)
    write_tensor(place, to_data(values), allow_non_finite=True)
    assert same_bits(model.w2.weight, values)
    write_tensor(place, fill=math.inf, allow_non_finite=True)
    assert model.w2.weight.isinf().all()
    write_tensor(target(torch.ones(1, dtype=torch.complex64)), sent([2 + 1j], torch.complex64))
    with pytest.raises(NotFinite):
        write_tensor(
            target(torch.ones(1, dtype=torch.complex64)), sent([complex(0, math.inf)], torch.complex64)
        )


def buffers() -> Iterator[LocatedTensor]:
    model = ZOO["dtypes"].build()
    for name in ZOO["dtypes"].build().names:  # type: ignore[union-attr]
        yield find_tensor(model, f"as_{name}")


@pytest.mark.parametrize("place", list(buffers()), ids=lambda place: place.name)
def test_every_dtype_is_written_bit_for_bit(place: LocatedTensor) -> None:
    data = to_data(place.tensor)
    write_tensor(place, fill=1)
    assert (place.tensor.to(torch.complex64) == 1).all()
    write_tensor(place, data, allow_non_finite=True)
    assert bytes(to_data(place.tensor).data) == bytes(data.data)


@pytest.mark.parametrize(
    ("value", "source", "dtype"),
    [
        ([1.5, -2.0], "float64", "float32"),
        ([1.0, 65504.0], "float64", "float16"),
        ([65519.0], "float64", "float16"),
        ([3.3e38], "float64", "bfloat16"),
        ([448.0, 460.0], "float32", "float8_e4m3fn"),
        ([57344.0], "float32", "float8_e5m2"),
        ([1e-300, 0.1], "float64", "float32"),
        ([0.5, 2.0], "float32", "float8_e8m0fnu"),
        ([1, -7, 2**40], "int64", "float32"),
        ([True, False], "bool", "float16"),
        ([2.0, -3.0, 0.0], "float64", "int8"),
        ([1.0, 0.0], "float32", "bool"),
        ([0, 255], "int64", "uint8"),
        ([2**63, 2**64 - 1], "uint64", "uint64"),
        ([2**63 - 1], "uint64", "int64"),
        ([2.0**63], "float64", "uint64"),
        ([-(2.0**63)], "float64", "int64"),
        ([3 + 0j], "complex64", "float32"),
        ([3 + 0j], "complex64", "int32"),
        ([2.5], "float64", "complex64"),
        ([3 - 4j], "complex128", "complex64"),
        ([7], "int32", "complex128"),
    ],
)
def test_a_cast_rounds_as_pytorch_does(value: list[Any], source: str, dtype: str) -> None:
    given = torch.tensor(value, dtype=getattr(torch, source))
    place = target(torch.zeros(len(value), dtype=torch.uint8).to(getattr(torch, dtype)))
    if source != dtype:
        with pytest.raises(DtypeMismatch, match=f"is {dtype} .*, got {source}"):
            write_tensor(place, to_data(given))
    write_tensor(place, to_data(given), cast=True)
    want = given.real if given.is_complex() and not place.tensor.is_complex() else given
    assert same_bits(place.tensor, want.to(place.tensor.dtype))


@pytest.mark.parametrize(
    ("value", "source", "dtype", "error", "text"),
    [
        (
            [0.0, 1e300],
            "float64",
            "float32",
            NotFinite,
            "is float32 and cannot take 1e+300 at [1]: it is beyond",
        ),
        ([65520.0], "float64", "float16", NotFinite, "beyond the dtype's range"),
        ([70000], "int64", "float16", NotFinite, "cannot take 70000 at [0]"),
        ([470.0], "float32", "float8_e4m3fn", NotFinite, "beyond"),
        ([-1e5], "float32", "float8_e5m2", NotFinite, "beyond"),
        ([1e39 + 0j], "complex128", "complex64", NotFinite, "beyond"),
        ([1e39j], "complex128", "complex64", NotFinite, "beyond"),
        ([1e39], "float64", "complex64", NotFinite, "beyond"),
        ([math.inf], "float32", "float8_e4m3fn", DtypeMismatch, "has no infinity"),
        ([-1.0], "float32", "float8_e8m0fnu", DtypeMismatch, "above zero only"),
        ([0.0], "float32", "float8_e8m0fnu", DtypeMismatch, "above zero only"),
        ([1 + 1e-9j], "complex128", "float64", DtypeMismatch, "imaginary part would be lost"),
        ([complex(1, math.nan)], "complex64", "float32", DtypeMismatch, "imaginary part would be lost"),
        ([1.0, 2.5], "float32", "int64", DtypeMismatch, "cannot take 2.5 at [1]: its fraction would be lost"),
        ([math.nan], "float32", "int64", NotFinite, "no whole number"),
        ([math.inf], "float32", "bool", NotFinite, "no whole number"),
        ([128], "int64", "int8", DtypeMismatch, "the dtype holds -128 to 127"),
        ([-1], "int64", "uint8", DtypeMismatch, "the dtype holds 0 to 255"),
        ([-1], "int64", "uint64", DtypeMismatch, "the dtype holds 0 to"),
        ([2**63], "uint64", "int64", DtypeMismatch, "the dtype holds"),
        ([2.0**63], "float64", "int64", DtypeMismatch, "the dtype holds"),
        ([2.0**64], "float64", "uint64", DtypeMismatch, "the dtype holds"),
        ([2], "int64", "bool", DtypeMismatch, "the dtype holds 0 to 1"),
    ],
)
def test_a_cast_refuses_to_lose(
    value: list[Any], source: str, dtype: str, error: type[ModscopeServerError], text: str
) -> None:
    place = target(torch.ones(len(value)).to(getattr(torch, dtype)))
    before = place.tensor.clone()
    given = to_data(torch.tensor(value, dtype=getattr(torch, source)))
    with pytest.raises(error):
        write_tensor(place, given, cast=True)
    with pytest.raises(error) as caught:
        write_tensor(place, given, cast=True, allow_non_finite=True)
    assert text in caught.value.message
    assert caught.value.hint
    assert same_bits(place.tensor, before)


def test_a_cast_tells_where_also_far_into_a_large_tensor() -> None:
    values = torch.zeros(3, 400_000, dtype=torch.float64)
    values[2, 399_999] = 1e300
    with pytest.raises(NotFinite, match=r"1e\+300 at \[2, 399999\]"):
        write_tensor(target(torch.zeros(3, 400_000)), to_data(values), cast=True)
    values[2, 399_999] = 0.1
    place = target(torch.zeros(3, 400_000))
    write_tensor(place, to_data(values), cast=True)
    assert same_bits(place.tensor, values.float())


@pytest.mark.parametrize(
    ("fill", "dtype", "error"),
    [(0.5, "int64", DtypeMismatch), (1e300, "float32", NotFinite), (300, "uint8", DtypeMismatch)],
)
def test_a_fill_takes_the_targets_dtype_or_is_refused(fill: Any, dtype: str, error: type[Exception]) -> None:
    place = target(torch.ones(3, dtype=getattr(torch, dtype)))
    with pytest.raises(error):
        write_tensor(place, fill=fill)
    assert place.tensor.tolist() == [1, 1, 1]
    big = target(torch.zeros(2, dtype=torch.uint64))
    write_tensor(big, fill=2**64 - 1)
    assert big.tensor.tolist() == [2**64 - 1] * 2


def test_targets_of_any_layout() -> None:
    base = torch.zeros(4, 6)
    values = torch.arange(12.0).reshape(4, 3)
    write_tensor(target(base[:, ::2]), to_data(values))
    assert torch.equal(base[:, ::2], values)
    assert not base[:, 1::2].any()
    write_tensor(target(base.t()[:3]), to_data(values.t()))
    assert torch.equal(base[:, :3], values)
    scalar = target(torch.tensor(1.0))
    write_tensor(scalar, sent(3.0))
    assert scalar.tensor.item() == 3.0
    write_tensor(target(torch.empty(0, 3)), sent(torch.empty(0, 3)))
    write_tensor(target(torch.empty(0, 3)), fill=1.0)
    conjugate = target(torch.zeros(2, dtype=torch.complex64).conj())
    write_tensor(conjugate, sent([1 + 2j, 3j], torch.complex64))
    assert conjugate.tensor.tolist() == [1 + 2j, 3j]
    with torch.inference_mode():
        inferred = target(torch.zeros(2))
    write_tensor(inferred, sent([1.0, 2.0]))
    assert inferred.tensor.tolist() == [1.0, 2.0]


def test_elements_that_share_memory_are_refused() -> None:
    base = torch.zeros(6)
    overlapping = [
        torch.zeros(3, 1).expand(3, 4),
        base[:1].expand(2),
        base.as_strided((3, 3), (1, 1)),
        base.unfold(0, 3, 1),
    ]
    for tensor in overlapping:
        assert overlaps_itself(tensor)
        with pytest.raises(NotMaterialized, match="share memory"):
            write_tensor(target(tensor), fill=1.0)
    assert not base.any()
    for tensor in (
        torch.zeros(2, 3, 4).permute(2, 0, 1)[::2],
        torch.zeros(3).expand(1, 3),
        torch.zeros(0, 3).expand(0, 3),
        torch.zeros(20).as_strided((2, 3), (3, 2)),  # gaps that interlock, told apart one by one
        torch.tensor(1.0),
    ):
        assert not overlaps_itself(tensor)
        write_tensor(target(tensor), fill=1.0)


def test_tensors_without_plain_memory_are_refused() -> None:
    holder = unreadable()
    for name in ("lazy", "meta", "sparse", "nested", "quantized"):
        with pytest.raises(NotMaterialized, match=f"{name} cannot be written: it is"):
            write_tensor(find_tensor(holder, name), fill=1.0)


def test_parametrized_tensors_are_written_where_they_live() -> None:
    model = ZOO["parametrized"].build()
    place = find_tensor(model, "normed.parametrizations.weight.original1")
    write_tensor(place, sent(torch.ones(4, 3)))
    normed: Any = model.normed
    assert torch.allclose(normed.weight.norm(dim=1), normed.parametrizations.weight.original0.flatten().abs())
    assert torch.allclose(normed.weight[0] / normed.weight[0, 0], torch.ones(3))


def test_tied_names_are_one_tensor() -> None:
    model = ZOO["tied"].build()
    write_tensor(find_tensor(model, "decode.weight"), fill=0.5)
    assert (model.embed.weight == 0.5).all()  # type: ignore[union-attr]
    assert model.embed.weight is model.decode.weight  # type: ignore[union-attr]


def test_what_changed_between_check_and_write_is_checked_again() -> None:
    place = target(torch.zeros(3))
    source = checked_source(place, fill=1.0)
    place.tensor.resize_(4).zero_()
    with pytest.raises(ShapeMismatch, match=r"is float32 \[4\], got float32 \[3\]"):
        write_checked(place, source)
    assert not place.tensor.any()


def test_a_write_that_does_not_read_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "same_bits", lambda a, b: False)
    with pytest.raises(ModscopeServerError, match="reads back different"):
        write_tensor(target(torch.zeros(3)), fill=1.0)


def test_a_write_from_numpy_bytes() -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    place = target(torch.zeros(2, 3))
    write_tensor(place, TensorData("float32", (2, 3), array.tobytes()))
    assert np.array_equal(place.tensor.numpy(), array)
