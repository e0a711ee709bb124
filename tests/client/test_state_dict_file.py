"""Safetensors files: what we write the reference reads, what it writes we read, the rest is refused."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from modscope.dtypes import DTYPES
from modscope.tensor import CHUNK_BYTES
from modscope_client.errors import InvalidArgument, NoSuchFile
from modscope_client.safetensors_file import Reader, Writer, refuse_unsupported
from modscope_client.state_dict import open_upload
from modscope_client.types import TensorSpec
from tests.client.test_arrays import tensor
from tests.end_to_end.serving import raw

REFUSED = {"complex128"}
UNREADABLE_BY_TORCH = {"float8_e8m0fnu"}


def spec(key: str, given: torch.Tensor) -> TensorSpec:
    name = str(given.dtype).removeprefix("torch.")
    return TensorSpec(key, name, tuple(given.shape), given.nbytes)


def write(path: Path, tensors: dict[str, torch.Tensor], chunk: int = CHUNK_BYTES) -> None:
    with Writer(path) as writer:
        writer.start([spec(key, given) for key, given in tensors.items()], {"format": "pt"})
        for index, given in enumerate(tensors.values()):
            data = memoryview(raw(given))
            for offset in range(0, len(data), chunk):
                writer.write(index, offset, data[offset : offset + chunk])
        writer.commit()


def read(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with Reader(path) as reader:
        return {
            stored.spec.key: (stored.spec.dtype, stored.spec.shape, b"".join(reader.chunks(stored)))
            for stored in reader.tensors
        }


def everything() -> dict[str, torch.Tensor]:
    names = [name for name in DTYPES if name not in REFUSED | UNREADABLE_BY_TORCH]
    shapes = [(), (3,), (2, 0), (5, 7)]
    return {f"{name}.{shape}": tensor(name, shape) for name in names for shape in shapes}


def test_the_reference_reads_what_we_write(tmp_path: Path) -> None:
    tensors = everything()
    write(tmp_path / "f.safetensors", tensors, chunk=3)
    loaded = safetensors.torch.load_file(tmp_path / "f.safetensors")
    assert set(loaded) == set(tensors)
    for key, given in tensors.items():
        assert (loaded[key].dtype, loaded[key].shape, raw(loaded[key])) == (
            given.dtype,
            given.shape,
            raw(given),
        )


def test_we_read_what_the_reference_writes(tmp_path: Path) -> None:
    tensors = everything()
    safetensors.torch.save_file(tensors, tmp_path / "f.safetensors", {"format": "pt"})
    assert read(tmp_path / "f.safetensors") == {
        key: (str(given.dtype).removeprefix("torch."), tuple(given.shape), raw(given))
        for key, given in tensors.items()
    }


def test_we_read_what_we_write_though_torch_does_not(tmp_path: Path) -> None:
    given = {"x": tensor("float8_e8m0fnu", (5,)), 'names may be odd: /\n"ü': torch.ones(2)}
    write(tmp_path / "f", given)
    found = read(tmp_path / "f")
    assert {key: data for key, (_, _, data) in found.items()} == {key: raw(t) for key, t in given.items()}


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    write(
        tmp_path / "f",
        {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(3), "c": torch.ones(1).double()},
    )
    with Reader(tmp_path / "f") as reader:
        assert all(
            stored.offset % (stored.spec.nbytes // stored.spec.shape[0]) == 0 for stored in reader.tensors
        )


def test_an_empty_state_dict_is_a_file_too(tmp_path: Path) -> None:
    write(tmp_path / "f", {})
    assert safetensors.torch.load_file(tmp_path / "f") == {} == read(tmp_path / "f")


def test_large_tensors_come_in_chunks(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(CHUNK_BYTES // 2 + 1)}, tmp_path / "f")
    with Reader(tmp_path / "f") as reader:
        sizes = [len(chunk) for chunk in reader.chunks(reader.tensors[0])]
    assert sizes == [CHUNK_BYTES, CHUNK_BYTES, 4]


def test_dtypes_that_the_format_lacks_are_named() -> None:
    entries = [TensorSpec("a", "float32", (1,), 4), TensorSpec("b.c", "complex128", (1,), 16)]
    with pytest.raises(InvalidArgument, match=r"b\.c \(complex128\)") as refusal:
        refuse_unsupported(entries)
    assert refusal.value.reason == "UNKNOWN_DTYPE" and "a (" not in refusal.value.message
    for name in DTYPES.keys() - REFUSED:
        refuse_unsupported([TensorSpec("a", name, (0,), 0)])


@pytest.mark.parametrize("there_before", [False, True])
def test_a_broken_transfer_leaves_no_file(tmp_path: Path, there_before: bool) -> None:
    target = tmp_path / "f.safetensors"
    if there_before:
        target.write_bytes(b"before")
    for broken_at in range(3):
        with pytest.raises(KeyboardInterrupt), Writer(target) as writer:
            break_off(writer, broken_at)
        assert os.listdir(tmp_path) == ["f.safetensors"] * there_before
    assert not there_before or target.read_bytes() == b"before"


def break_off(writer: Writer, at: int) -> None:
    if at > 0:
        writer.start([TensorSpec("x", "uint8", (4,), 4)], {})
    if at > 1:
        writer.write(0, 0, memoryview(b"ab"))
    raise KeyboardInterrupt


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "f"
    with Writer(target) as writer:
        writer.start([TensorSpec("x", "uint8", (1,), 1)], {})
        writer.write(0, 0, memoryview(b"a"))
        assert not target.exists()
        writer.commit()
        assert target.exists()
    assert os.listdir(tmp_path) == ["f"]


def test_a_file_has_the_rights_that_others_have(tmp_path: Path) -> None:
    write(tmp_path / "f", {})
    (tmp_path / "g").touch()
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == stat.S_IMODE((tmp_path / "g").stat().st_mode)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "f")
    write(tmp_path / "link", {"x": torch.ones(1)})
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "real") == ["f"]


def test_a_target_that_cannot_be_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Writer(tmp_path)
    with pytest.raises(FileNotFoundError):
        Writer(tmp_path / "nowhere" / "f")


def made(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "U8", shape: Any = (2,), offsets: Any = (0, 2)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "short": lambda: b"\x02\0\0",
    "header longer than the file": lambda: made({}, length=100),
    "header of exabytes": lambda: made({}, length=1 << 63),
    "not json": lambda: made(b"{x}"),
    "not unicode": lambda: made(b'{"\xff": 1}'),
    "no object": lambda: made([1]),
    "endless nesting": lambda: made(b"[" * 100_000),
    "duplicate key": lambda: made(
        b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},'
        b' "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}',
        b"x",
    ),
    "duplicate field": lambda: made(
        b'{"a": {"dtype": "U8", "dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}', b"x"
    ),
    "entry is no object": lambda: made({"a": 5}),
    "no shape": lambda: made({"a": {"dtype": "U8", "data_offsets": [0, 0]}}),
    "unknown dtype": lambda: made({"a": entry("F4")}, b"xx"),
    "dtype is no text": lambda: made({"a": entry(["U8"])}, b"xx"),
    "negative shape": lambda: made({"a": entry(shape=[-2])}, b"xx"),
    "fractional shape": lambda: made({"a": entry(shape=[2.0])}, b"xx"),
    "true for a size": lambda: made({"a": entry(shape=[True], offsets=[0, 1])}, b"x"),
    "shape is no list": lambda: made({"a": entry(shape=2)}, b"xx"),
    "three offsets": lambda: made({"a": entry(offsets=[0, 1, 2])}, b"xx"),
    "offsets backwards": lambda: made({"a": entry(offsets=[2, 0])}, b"xx"),
    "negative offset": lambda: made({"a": entry(offsets=[-2, 0])}, b"xx"),
    "size and shape differ": lambda: made({"a": entry(shape=[3])}, b"xx"),
    "gap at the start": lambda: made({"a": entry(offsets=[1, 3])}, b"xxx"),
    "gap between": lambda: made({"a": entry(), "b": entry(offsets=[3, 5])}, b"xxxxx"),
    "overlap": lambda: made({"a": entry(), "b": entry(offsets=[1, 3])}, b"xxx"),
    "same bytes twice": lambda: made({"a": entry(), "b": entry()}, b"xx"),
    "bytes missing": lambda: made({"a": entry()}, b"x"),
    "bytes beyond": lambda: made({"a": entry()}, b"xxx"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_safetensors_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(BAD[name]())
    with pytest.raises(InvalidArgument, match=r"f\.safetensors' is no safetensors file") as refusal:
        Reader(path)
    assert refusal.value.reason == "BAD_REQUEST"


def test_the_good_twin_of_the_bad_ones_is_read(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry(offsets=[2, 4]),
        "a": entry(),
        "c": entry(shape=[0, 3], offsets=[4, 4]),
    }
    (tmp_path / "f").write_bytes(made(header, b"abcd"))
    assert read(tmp_path / "f") == {
        "a": ("uint8", (2,), b"ab"),
        "b": ("uint8", (2,), b"cd"),
        "c": ("uint8", (0, 3), b""),
    }


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(made({"a": entry()}, b"xx"))
    with Reader(path) as reader:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(InvalidArgument, match="ends within 'a'"):
            list(reader.chunks(reader.tensors[0]))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    with pytest.raises(NoSuchFile, match=r"none\.safetensors") as refusal:
        open_upload(missing)
    assert isinstance(refusal.value, FileNotFoundError) and isinstance(refusal.value, InvalidArgument)
    assert refusal.value.hint and refusal.value.details == {"field": "file"}
    copied = pickle.loads(pickle.dumps(refusal.value))
    assert type(copied) is NoSuchFile and str(copied) == str(refusal.value)
    with pytest.raises(IsADirectoryError):
        open_upload(tmp_path)
