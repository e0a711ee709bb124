"""Dtype names, their wire numbers and item sizes.

A name is torch's spelling without its prefix. A name that is not in the table travels as raw
bytes with its name, and its wire number is 0 (DTYPE_UNSPECIFIED).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DTYPES", "DtypeInfo", "dtype_name", "item_size", "wire_number"]


class DtypeInfo(NamedTuple):
    """A dtype that both sides understand."""

    name: str
    """torch's name without its prefix, such as "bfloat16"."""
    wire: int
    """Number of the enum value in modscope.v1.Dtype."""
    size: int
    """Bytes of one element."""
    numpy: str
    """Name of the numpy dtype with the same bytes; ml_dtypes defines those that numpy lacks."""


DTYPES: dict[str, DtypeInfo] = {
    info.name: info
    for info in (
        DtypeInfo("float64", 1, 8, "float64"),
        DtypeInfo("float32", 2, 4, "float32"),
        DtypeInfo("float16", 3, 2, "float16"),
        DtypeInfo("bfloat16", 4, 2, "bfloat16"),
        DtypeInfo("float8_e4m3fn", 5, 1, "float8_e4m3fn"),
        DtypeInfo("float8_e5m2", 6, 1, "float8_e5m2"),
        DtypeInfo("float8_e4m3fnuz", 7, 1, "float8_e4m3fnuz"),
        DtypeInfo("float8_e5m2fnuz", 8, 1, "float8_e5m2fnuz"),
        DtypeInfo("float8_e8m0fnu", 9, 1, "float8_e8m0fnu"),
        DtypeInfo("complex64", 10, 8, "complex64"),
        DtypeInfo("complex128", 11, 16, "complex128"),
        DtypeInfo("int8", 12, 1, "int8"),
        DtypeInfo("int16", 13, 2, "int16"),
        DtypeInfo("int32", 14, 4, "int32"),
        DtypeInfo("int64", 15, 8, "int64"),
        DtypeInfo("uint8", 16, 1, "uint8"),
        DtypeInfo("uint16", 17, 2, "uint16"),
        DtypeInfo("uint32", 18, 4, "uint32"),
        DtypeInfo("uint64", 19, 8, "uint64"),
        DtypeInfo("bool", 20, 1, "bool"),
    )
}

_BY_WIRE = {info.wire: info.name for info in DTYPES.values()}


def wire_number(name: str) -> int:
    """The enum value for a dtype name; 0 where the contract does not know the dtype."""
    info = DTYPES.get(name)
    return info.wire if info else 0


def dtype_name(wire: int) -> str | None:
    """The dtype name for an enum value; None where the contract does not know it."""
    return _BY_WIRE.get(wire)


def item_size(name: str) -> int | None:
    """Bytes of one element; None where the contract does not know the dtype."""
    info = DTYPES.get(name)
    return info.size if info else None
