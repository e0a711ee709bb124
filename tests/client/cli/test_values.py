"""Numbers typed as JSON, as arrays of a dtype."""

from __future__ import annotations

import click
import numpy
import pytest
import torch

from modscope.dtypes import DTYPES
from modscope_client.cli.serialize import array_values
from modscope_client.cli.values import array_from_numbers, parse_numbers
from modscope_client.errors import InvalidArgument


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_get_prints_set_takes_back(dtype: str) -> None:
    document = [[True, False]] if dtype == "bool" else [[[1, 2]]] if "complex" in dtype else [[1, 2]]
    array = array_from_numbers(document, dtype)
    assert str(array.dtype) == dtype
    again = array_from_numbers(array_values(array), dtype)
    assert again.tobytes() == array.tobytes()
    assert again.shape == array.shape


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_reals_are_rounded_as_torch_rounds_them(dtype: str) -> None:
    numbers = [0.1, -3.3333333, 1e-8, 65000.0]
    array = array_from_numbers(numbers, dtype)
    tensor = torch.tensor(numbers, dtype=getattr(torch, dtype))
    assert array.tobytes() == bytes(tensor.view(torch.uint8).numpy())


def test_words_for_numbers_that_json_lacks() -> None:
    array = array_from_numbers(["NaN", "-Infinity", 1], "float32")
    assert numpy.isnan(array[0])
    assert array[1] == -numpy.inf


def test_a_bare_number_has_no_dimension() -> None:
    assert array_from_numbers(3, "int64").shape == ()
    assert array_from_numbers([], "float32").shape == (0,)


@pytest.mark.parametrize(
    ("document", "dtype", "reason"),
    [
        ([0.5], "int64", "DTYPE_MISMATCH"),
        ([300], "uint8", "DTYPE_MISMATCH"),
        ([-1], "uint64", "DTYPE_MISMATCH"),
        ([1], "bool", "DTYPE_MISMATCH"),
        ([True], "float32", "DTYPE_MISMATCH"),
        (["abc"], "float32", "DTYPE_MISMATCH"),
        ([None], "float32", "DTYPE_MISMATCH"),
        ([1, 2, 3], "complex64", "DTYPE_MISMATCH"),
        ([10**400], "float64", "DTYPE_MISMATCH"),
        ([1.0, 1e300], "float32", "NOT_FINITE"),
        ([1000], "float8_e4m3fn", "NOT_FINITE"),
        ([[1e300, 0]], "complex64", "NOT_FINITE"),
        ([1], "int3", "UNKNOWN_DTYPE"),
    ],
)
def test_what_the_dtype_cannot_hold_is_refused(document: object, dtype: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        array_from_numbers(document, dtype)
    assert caught.value.reason == reason
    assert dtype in caught.value.message


def test_large_integers_are_exact() -> None:
    assert array_from_numbers([2**64 - 1, 2**63], "uint64").tolist() == [2**64 - 1, 2**63]
    assert array_from_numbers([-(2**63)], "int64").tolist() == [-(2**63)]


@pytest.mark.parametrize("document", [[[1, 2], [3]], [{"a": 1}], {"a": 1}])
def test_no_block_of_numbers(document: object) -> None:
    with pytest.raises(click.BadParameter):
        array_from_numbers(document, "float32")


def test_no_json() -> None:
    with pytest.raises(click.BadParameter, match="no JSON"):
        parse_numbers("[1, 2", "--value")
