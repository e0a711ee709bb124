"""The dtype table against torch, numpy, ml_dtypes and the enum on the wire."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from modscope.dtypes import DTYPES, dtype_name, item_size, wire_number
from modscope.v1 import tensor_pb2

NOT_IN_THE_TABLE = ("bits", "qint", "quint", "float4_e2m1fn_x2", "complex32", "chalf")
"""Beginnings of torch dtypes that travel as raw bytes with their name: quantised, packed, half complex."""


def torch_dtypes() -> dict[str, torch.dtype]:
    """Every dtype of this torch by its canonical name."""
    found = (value for value in vars(torch).values() if isinstance(value, torch.dtype))
    return {str(dtype).removeprefix("torch."): dtype for dtype in found}


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The numpy dtype of that name, from ml_dtypes where numpy has none."""
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def is_sub_byte(name: str) -> bool:
    kind = name.rstrip("0123456789")
    return kind in ("int", "uint") and int(name.removeprefix(kind)) < 8


@pytest.mark.parametrize("name", DTYPES)
def test_sizes_are_those_of_torch_and_numpy(name: str) -> None:
    size = torch_dtypes()[name].itemsize
    assert item_size(name) == size
    assert numpy_dtype(DTYPES[name].numpy).itemsize == size


def test_every_dtype_that_a_module_can_hold_is_in_the_table() -> None:
    missing = set(torch_dtypes()) - set(DTYPES)
    assert {
        name for name in missing if not is_sub_byte(name) and not name.startswith(NOT_IN_THE_TABLE)
    } == set()


def test_wire_numbers_are_those_of_the_enum() -> None:
    table = {f"DTYPE_{name.upper()}": wire_number(name) for name in DTYPES}
    assert table | {"DTYPE_UNSPECIFIED": 0} == dict(tensor_pb2.Dtype.items())


@pytest.mark.parametrize("name", DTYPES)
def test_wire_numbers_lead_back(name: str) -> None:
    assert dtype_name(wire_number(name)) == name


@pytest.mark.parametrize("name", ["float4_e2m1fn_x2", "quint8", "", "torch.float32", "FLOAT32"])
def test_a_name_outside_the_table_is_never_guessed(name: str) -> None:
    assert wire_number(name) == 0
    assert item_size(name) is None


@pytest.mark.parametrize("number", [0, -1, 21, 1000])
def test_a_number_outside_the_table_is_never_guessed(number: int) -> None:
    assert dtype_name(number) is None


@pytest.mark.parametrize("name", DTYPES)
def test_the_same_bytes_mean_the_same_numbers_to_torch_and_numpy(name: str) -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 0.5] if torch_dtypes()[name].is_floating_point else [0, 1, 0, 1])
    tensor = values.to(torch_dtypes()[name])
    array = np.frombuffer(tensor.view(torch.uint8).numpy().tobytes(), numpy_dtype(DTYPES[name].numpy))
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    np.testing.assert_array_equal(array.astype(str(wide).removeprefix("torch.")), tensor.to(wide).numpy())
