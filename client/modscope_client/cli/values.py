"""Numbers typed as JSON, as arrays of a dtype; nothing is rounded to another kind or overflows unsaid."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click

from modscope.tensor import TensorData
from modscope_client.errors import InvalidArgument

if TYPE_CHECKING:
    import numpy

__all__ = ["array_from_numbers", "parse_number", "parse_numbers"]

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def parse_numbers(text: str, option: str) -> Any:
    """The numbers that a JSON text holds: a number, true, false, or nested lists. Raises UsageError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no JSON ({error}): give a number or nested lists", param_hint=option
        ) from None


def parse_number(text: str, option: str) -> float | int | bool:
    """The one number, true or false that a text is. Raises UsageError."""
    if text.lstrip("+-").lower() in ("nan", "inf", "infinity"):
        return float(text)
    number = parse_numbers(text, option)
    if not isinstance(number, (bool, int, float)):
        raise click.BadParameter(f"{text!r} is not one number", param_hint=option)
    return number


def array_from_numbers(document: Any, dtype: str) -> numpy.ndarray[Any, Any]:
    """The numbers as an array of a dtype, by its name.

    "NaN", "Infinity" and "-Infinity" stand for themselves; a complex number is [real, imaginary].
    Raises InvalidArgument for what the dtype cannot hold: 0.5 in integers, 300 in uint8, 1e300 in
    float32, a number in bool.
    """
    import numpy

    from modscope_client.arrays import array_of

    sample = array_of(TensorData(dtype, (0,), b""))
    if isinstance(sample, TensorData):
        raise InvalidArgument(f"numbers cannot be written as {dtype}", reason="UNKNOWN_DTYPE")
    leaves = _object_array(document)
    if dtype == "bool" or dtype.startswith(("int", "uint")):
        convert = _bool if dtype == "bool" else _integer
        flat = numpy.array([convert(leaf, dtype) for leaf in leaves.reshape(-1)], dtype=object)
        return flat.astype(sample.dtype).reshape(leaves.shape)
    if dtype.startswith("complex"):
        if leaves.ndim == 0 or leaves.shape[-1] != 2:
            raise _mismatch(leaves.tolist(), dtype, "write each number as [real, imaginary]")
        pairs = _reals(leaves, sample.real.dtype, dtype)
        array: numpy.ndarray[Any, Any] = pairs.view(sample.dtype).reshape(leaves.shape[:-1])
        return array
    return _reals(leaves, sample.dtype, dtype)


def _object_array(document: Any) -> numpy.ndarray[Any, Any]:
    import numpy

    try:
        array = numpy.array(document, dtype=object)
    except ValueError:
        array = None
    if array is None or any(isinstance(leaf, (list, dict)) for leaf in array.reshape(-1)):
        raise click.BadParameter(
            "rows differ in length: nested lists must form a block", param_hint="--value"
        )
    return array


def _bool(leaf: Any, dtype: str) -> bool:
    if isinstance(leaf, bool):
        return leaf
    raise _mismatch(leaf, dtype, "write true or false")


def _integer(leaf: Any, dtype: str) -> int:
    import numpy

    is_whole = isinstance(leaf, int) or (isinstance(leaf, float) and leaf.is_integer())
    if isinstance(leaf, bool) or not is_whole:
        raise _mismatch(leaf, dtype, "write a whole number")
    limits = numpy.iinfo(dtype)
    if not limits.min <= leaf <= limits.max:
        raise _mismatch(leaf, dtype, f"it holds {limits.min} to {limits.max}")
    return int(leaf)


def _reals(leaves: Any, kind: Any, dtype: str) -> numpy.ndarray[Any, Any]:
    """The leaves as an array of the floating kind; refuses one that becomes infinite or nan in it."""
    import numpy

    wide = numpy.array([_real(leaf, dtype) for leaf in leaves.reshape(-1)], dtype=numpy.float64)
    with numpy.errstate(over="ignore", invalid="ignore"):
        array = wide.astype(kind)
    lost = numpy.isfinite(wide) & ~numpy.isfinite(array.astype(numpy.float64))
    if bool(lost.any()):
        raise InvalidArgument(
            f"{float(wide[lost][0]):g} is beyond what {dtype} can hold",
            reason="NOT_FINITE",
            hint="give a smaller number",
        )
    return array.reshape(leaves.shape)


def _real(leaf: Any, dtype: str) -> float:
    if isinstance(leaf, str) and leaf in _WORDS:
        return _WORDS[leaf]
    if isinstance(leaf, bool) or not isinstance(leaf, (int, float)):
        raise _mismatch(leaf, dtype, 'write a number, or "NaN", "Infinity", "-Infinity"')
    try:
        return float(leaf)
    except OverflowError:
        raise _mismatch(leaf, dtype, "give a smaller number") from None


def _mismatch(leaf: Any, dtype: str, hint: str) -> InvalidArgument:
    return InvalidArgument(f"{json.dumps(leaf)} is no {dtype}", reason="DTYPE_MISMATCH", hint=hint)
