"""Parts of tensors and casts: what PyTorch's own indexing and `to` give, taken where the tensor lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modscope.tensor import TensorData
from modscope_server.errors import BadRequest, UnknownDtype
from modscope_server.inspection.statistics import reduce, statistics
from modscope_server.inspection.tensors import from_data
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.parts import cast_target, copied
from tests.plain_models import unreadable
from tests.server.capture_support import armed, drained, manager, tensor_of

__all__ = ["manager"]


class Gives(nn.Module):
    """Gives what it takes."""

    def forward(self, *values: Any) -> Any:
        return values[0] if len(values) == 1 else values


def value_of(manager: HookManager, tensor: torch.Tensor, **spec: Any) -> Any:
    """What a watch tells of that tensor."""
    model = Gives()
    watch = armed(manager, model, **spec)
    model(tensor)
    (event,) = drained(watch)
    assert not watch.taps[0].faults
    manager.stop(watch.subscription.id)
    return event.values[0]


INDICES: dict[str, Any] = {
    "[:, -1, :]": (slice(None), -1, slice(None)),
    "[0]": 0,
    "[..., 1]": (..., 1),
    "[1, 2, 3]": (1, 2, 3),
    "[::2, 1:3]": (slice(None, None, 2), slice(1, 3)),
    "[5:]": slice(5, None),
    "...": ...,
}


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64, torch.bool])
def test_a_part_of_a_tensor(manager: HookManager, index: str, dtype: torch.dtype) -> None:
    tensor = (torch.randn(2, 3, 4) * 5).to(dtype)
    value = value_of(manager, tensor, payload="tensor", index=index)
    part = tensor[INDICES[index]]
    assert (value.shape, value.dtype) == ((2, 3, 4), str(dtype).removeprefix("torch."))
    assert (value.tensor.shape, value.tensor.dtype) == (tuple(part.shape), value.dtype)
    assert bytes(value.tensor.data) == part.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    value = value_of(manager, tensor, payload="stats", index=index)
    assert (value.stats, value.shape, value.tensor) == (statistics(part), (2, 3, 4), None)


def test_histograms_and_samples_of_a_part(manager: HookManager) -> None:
    tensor = torch.randn(50, 40)
    value = value_of(manager, tensor, payload="histogram", index="[:, ::2]", sample=100)
    expected = reduce(tensor[:, ::2], histogram=True, sample=100)
    assert (value.histogram, value.sample) == (expected.histogram(), expected.sample())
    assert value.stats == expected.resolve()


@pytest.mark.parametrize("payload", ["stats", "histogram", "tensor"])
@pytest.mark.parametrize(
    ("index", "says"), [("[0, 0, 0, 0]", "too many indices"), ("[7]", "out of bounds"), ("[:, 3]", "out of")]
)
def test_an_index_that_does_not_fit_is_told(
    manager: HookManager, payload: str, index: str, says: str
) -> None:
    value = value_of(manager, torch.ones(2, 3), payload=payload, index=index)
    assert (value.stats, value.tensor, value.histogram) == (None, None, None)
    assert (value.shape, value.dtype) == ((2, 3), "float32")
    assert index in value.note
    assert says in value.note


def test_one_value_may_fit_where_another_does_not(manager: HookManager) -> None:
    model = Gives()
    watch = armed(manager, model, payload="tensor", index="[:, -1]")
    one = torch.randn(3, 4)
    model(one, torch.ones(()), None, torch.empty(0, 1))
    (event,) = drained(watch)
    first, scalar, nothing, empty = event.values
    assert torch.equal(tensor_of(first), one[:, -1])
    assert "[:, -1]" in scalar.note
    assert (nothing.dtype, nothing.note) == (None, "")
    assert empty.tensor is not None
    assert empty.tensor.shape == (0,)


CASTS = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int32",
    "uint8",
    "int64",
]


@pytest.mark.parametrize("dtype", CASTS)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.int16, torch.bool])
def test_casts_are_torchs(manager: HookManager, dtype: str, source: torch.dtype) -> None:
    tensor = (torch.rand(4, 3) * 100).to(source)
    value = value_of(manager, tensor, payload="tensor", dtype=dtype, index="[1:]")
    expected = tensor[1:].to(getattr(torch, dtype))
    assert (value.shape, value.dtype) == ((4, 3), str(source).removeprefix("torch."))
    assert (value.tensor.shape, value.tensor.dtype) == ((3, 3), dtype)
    assert bytes(value.tensor.data) == expected.view(-1).view(torch.uint8).numpy().tobytes()
    assert not value.note


def test_a_complex_value_is_not_cast_to_a_real_one(manager: HookManager) -> None:
    value = value_of(manager, torch.ones(2, dtype=torch.complex64), payload="tensor", dtype="float32")
    assert (value.tensor, value.dtype) == (None, "complex64")
    assert value.note == "complex64 is not cast to float32: its imaginary part would be lost"


@pytest.mark.parametrize("name", ["complex64", "bool", "int4", "float4_e2m1fn_x2", "float33", "", "Tensor"])
def test_what_nothing_is_cast_to(name: str) -> None:
    with pytest.raises((BadRequest, UnknownDtype)) as caught:
        cast_target(name)
    is_torchs = isinstance(getattr(torch, name, None), torch.dtype) if name else False
    assert isinstance(caught.value, UnknownDtype) is not is_torchs


@pytest.mark.parametrize("index", ["", "[1]", "..."])
@pytest.mark.parametrize("dtype", ["", "float32", "float64"])
def test_a_copy_shares_no_memory_and_holds_no_more_than_its_part(index: str, dtype: str) -> None:
    tensor = torch.randn(2, 1000, requires_grad=True)
    copy = copied(tensor, index, dtype)
    assert isinstance(copy, TensorData)
    part = tensor.detach()[1] if index == "[1]" else tensor.detach()
    expected = part.to(getattr(torch, dtype or "float32"), copy=True)
    with torch.no_grad():
        tensor.zero_()
    assert torch.equal(from_data(copy), expected)
    assert copy.nbytes == expected.nbytes


@pytest.mark.parametrize("name", ["meta", "sparse", "nested", "quantized", "lazy"])
@pytest.mark.parametrize(
    ("payload", "index"),
    [("none", ""), *((p, i) for p in ("stats", "histogram", "tensor") for i in ("", "[0]"))],
)
def test_what_cannot_be_read_is_told(manager: HookManager, payload: str, index: str, name: str) -> None:
    tensor = getattr(unreadable(), name)
    value = value_of(manager, tensor, payload=payload, index=index)
    assert (value.stats, value.tensor) == (None, None)
    assert value.note.startswith("uninitialized" if name == "lazy" else name)


class Guarded(torch.Tensor):
    """A tensor that lets no function of torch near it."""

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("not with this tensor")


def test_a_subclass_is_read_past_what_it_does_to_functions(manager: HookManager) -> None:
    plain = torch.randn(3, 2)
    guarded = plain.as_subclass(Guarded)
    value = value_of(manager, guarded, payload="tensor", index="[1:]")
    assert torch.equal(tensor_of(value), plain[1:])
    assert value_of(manager, guarded, payload="stats").stats == statistics(plain)


def test_what_torch_cannot_cast_is_told(manager: HookManager) -> None:
    value = value_of(manager, torch.empty(2, dtype=torch.bits8), payload="tensor", dtype="float32")
    assert (value.tensor, value.note) == (None, "torch cannot cast bits8 to float32")


def test_a_tensor_whose_memory_was_given_back(manager: HookManager) -> None:
    tensor = torch.ones(4)[1:]
    tensor.untyped_storage().resize_(0)
    for payload in ("stats", "tensor"):
        assert value_of(manager, tensor, payload=payload).note.startswith("released")
