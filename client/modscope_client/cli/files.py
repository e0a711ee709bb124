"""Tensors in files: .npy for one of a dtype that numpy names, .safetensors for any, .json for results."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import click

from modscope.tensor import TensorData
from modscope_client.cli.text import plural
from modscope_client.errors import InvalidArgument

__all__ = ["check_suffix", "read_tensor", "write_bytes", "write_tensor", "write_tensors"]

_USE_SAFETENSORS = "use a .safetensors file, which has a name for every dtype"


def check_suffix(file: str, *suffixes: str) -> str:
    """The file's suffix. Raises UsageError where it is none of these, naming them."""
    suffix = Path(file).suffix
    if suffix not in suffixes:
        listed = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise click.UsageError(f"{file!r}: the name must end in {listed}")
    return suffix


def read_tensor(file: str, key: str = "") -> Any:
    """The tensor of a .npy or .safetensors file; of several in one file, that under `key`.

    Raises InvalidArgument for a file that is not what its name says, or has no such tensor.
    """
    if check_suffix(file, ".npy", ".safetensors") == ".safetensors":
        return _read_safetensors(file, key)
    import numpy

    try:
        array = numpy.load(file, allow_pickle=False)
    except ValueError as error:
        raise InvalidArgument(f"{file!r} is no .npy file: {error}", hint="write it with numpy.save") from None
    if not isinstance(array, numpy.ndarray):
        raise InvalidArgument(f"{file!r} holds several arrays", hint="give one .npy file for each")
    if array.dtype.kind == "V":
        raise InvalidArgument(
            f"{file!r} has dtype {array.dtype.str}: .npy has lost which one it was",
            reason="UNKNOWN_DTYPE",
            hint=_USE_SAFETENSORS,
        )
    return array


def _read_safetensors(file: str, key: str) -> Any:
    from modscope_client.arrays import array_of
    from modscope_client.safetensors_file import Reader

    with Reader(file) as reader:
        found = [stored for stored in reader.tensors if stored.spec.key == key] or reader.tensors
        if len(found) != 1:
            held = ", ".join(stored.spec.key for stored in reader.tensors[:10]) or "nothing"
            raise InvalidArgument(
                f"{file!r} holds {plural(len(reader.tensors), 'tensor')} and none is {key!r}",
                hint=f"it has {held}: give a file with one tensor, or with one of that name",
            )
        spec = found[0].spec
        return array_of(TensorData(spec.dtype, spec.shape, b"".join(reader.chunks(found[0]))))


def write_tensor(file: str, key: str, array: Any) -> None:
    """Writes one tensor, under `key` in a .safetensors file. A write that fails leaves no file.

    Raises InvalidArgument for a dtype that the format cannot name.
    """
    if check_suffix(file, ".npy", ".safetensors") == ".safetensors":
        write_tensors(file, {key: array})
        return
    dtype = str(array.dtype)
    if isinstance(array, TensorData) or array.dtype.isbuiltin == 2:
        raise InvalidArgument(f".npy has no name for {dtype}", reason="UNKNOWN_DTYPE", hint=_USE_SAFETENSORS)
    import numpy

    write_bytes(file, lambda out: numpy.save(out, array, allow_pickle=False))


def write_tensors(file: str, arrays: Mapping[str, Any]) -> None:
    """Writes tensors into a .safetensors file. A write that fails leaves no file."""
    from modscope_client.arrays import tensor_of
    from modscope_client.safetensors_file import Writer
    from modscope_client.types import TensorSpec

    tensors = [tensor_of(array) for array in arrays.values()]
    entries = [
        TensorSpec(key, tensor.dtype, tensor.shape, len(tensor.data))
        for key, tensor in zip(arrays, tensors, strict=True)
    ]
    with Writer(file) as writer:
        writer.start(entries, {"format": "pt"})
        for index, tensor in enumerate(tensors):
            writer.write(index, 0, memoryview(tensor.data))
        writer.commit()


def write_bytes(file: str, write: Callable[[IO[bytes]], object]) -> None:
    """Has `write` fill a file beside the target, then puts it in its place; a failure leaves no file."""
    target = Path(os.path.realpath(file))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as out:
            write(out)
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
