"""A state_dict on its way: what a stream makes, what a mapping or a file gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch

from modscope import wire
from modscope.tensor import CHUNK_BYTES
from modscope.v1 import state_dict_service_pb2, tensor_pb2
from modscope.wire import Frame
from modscope_client.errors import Internal, InvalidArgument
from modscope_client.memory import Memory
from modscope_client.state_dict import ArrayTarget, Download, keys_of, open_upload

Response = state_dict_service_pb2.DownloadResponse


def entry(key: str, size: int) -> tensor_pb2.TensorHeader:
    return tensor_pb2.TensorHeader(key=key, spec=wire.spec_of("uint8", (size,)))


def first(*sizes: int) -> Frame[Response]:
    entries = [entry(f"k{index}", size) for index, size in enumerate(sizes)]
    return Frame(Response(step=7, entries=entries, not_carried=["x._extra_state"]))


def test_a_download() -> None:
    told: list[tuple[int, int]] = []
    target = ArrayTarget(Memory())
    download = Download(target, lambda done, total: told.append((done, total)))
    download.take(first(2, 0, 3))
    download.take(Frame(Response(begins=0), b"a"))
    download.take(Frame(Response(), b"b"))
    download.take(Frame(Response(begins=2), b"cde"))
    keys = download.finish()
    assert {key: array.tobytes() for key, array in target.arrays.items()} == {  # type: ignore[union-attr]
        "k0": b"ab",
        "k1": b"",
        "k2": b"cde",
    }
    assert [(spec.key, spec.dtype, spec.shape, spec.nbytes) for spec in keys.entries][2] == (
        "k2",
        "uint8",
        (3,),
        3,
    )
    assert keys.not_carried == ("x._extra_state",) and keys.step == 7
    assert told == [(0, 5), (1, 5), (2, 5), (5, 5)]


def test_an_empty_state_dict() -> None:
    target = ArrayTarget(Memory())
    download = Download(target, None)
    download.take(first())
    assert download.finish().entries == () and target.arrays == {}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [first(2)],
        [first(2), Frame(Response(begins=0), b"a")],
        [first(2), Frame(Response(begins=0), b"abc")],
        [first(2, 2), Frame(Response(begins=1), b"ab")],
        [first(2, 2), Frame(Response(begins=0), b"ab"), Frame(Response(begins=0), b"ab")],
        [first(2), Frame(Response(begins=1), b"ab")],
        [Frame(Response(begins=0), b"ab")],
    ],
)
def test_a_stream_that_contradicts_itself(messages: list[Frame[Response]]) -> None:
    download = Download(ArrayTarget(Memory()), None)

    def run() -> None:
        for message in messages:
            download.take(message)
        download.finish()

    with pytest.raises(Internal):
        run()


def frames_of(source: Any, *, strict: bool = True, progress: Any = None) -> list[Frame[Any]]:
    with open_upload(source) as upload:
        return [
            Frame(frame.header, bytes(frame.data))
            for frame in upload.frames("m", strict=strict, progress=progress)
        ]


def arrived(frames: list[Frame[Any]]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What a reader of the contract makes of an upload."""
    entries = frames[0].header.entries
    data = [b""] * len(entries)
    index = -1
    for frame in frames[1:]:
        if frame.header.HasField("begins"):
            assert frame.header.begins == index + 1
            index += 1
        data[index] += bytes(frame.data)
        assert len(frame.data) <= CHUNK_BYTES
    assert index == len(entries) - 1
    return {e.key: (e.spec.dtype_name, tuple(e.spec.shape), d) for e, d in zip(entries, data, strict=True)}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "large": torch.randn(CHUNK_BYTES // 4 + 5),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(4, dtype=torch.int64),
        "half": torch.randn(2, 2).bfloat16(),
        "strided": torch.randn(4, 5).t(),
    }


def expected() -> Iterator[Any]:
    from tests.end_to_end.serving import bits

    torch.manual_seed(0)
    yield from ((key, bits(given)) for key, given in tensors().items())


def test_a_mapping_of_torch_tensors_or_arrays_or_a_file_is_sent_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = tensors()
    contiguous = {key: tensor.contiguous() for key, tensor in given.items()}
    safetensors.torch.save_file(contiguous, tmp_path / "f.safetensors")
    wanted = dict(expected())
    assert list(arrived(frames_of(given))) == list(given)
    assert arrived(frames_of(given)) == wanted
    assert arrived(frames_of(str(tmp_path / "f.safetensors"))) == wanted
    assert arrived(frames_of(tmp_path / "f.safetensors")) == wanted


def test_the_first_message_tells_all() -> None:
    (head, *_) = frames_of({"a": numpy.zeros(2, "f4")}, strict=False)
    assert head.header.model == "m" and head.header.lenient and len(head.data) == 0
    assert not frames_of({}, strict=True)[0].header.lenient


def test_progress_is_told_from_nothing_to_all() -> None:
    told: list[tuple[int, int]] = []
    frames_of(
        {"a": numpy.zeros(CHUNK_BYTES + 8, "u1")}, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(0, CHUNK_BYTES + 8), (CHUNK_BYTES, CHUNK_BYTES + 8), (CHUNK_BYTES + 8, CHUNK_BYTES + 8)]


def test_extra_state_is_not_carried() -> None:
    given = {"a": numpy.zeros(1), "b._extra_state": {"anything": 1}, "_extra_state": None}
    assert list(arrived(frames_of(given))) == ["a"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"a.b": "text"}, "a.b: "),
        ({5: numpy.zeros(1)}, "5 is no key"),
        ({"\ud800": numpy.zeros(1)}, "key cannot be"),
        ([1], "a list is neither"),
        (None, "a NoneType is neither"),
    ],
)
def test_what_is_no_state_dict(source: Any, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        frames_of(source)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_upload(tmp_path / "nowhere.safetensors")


def test_keys_come_in_batches() -> None:
    batches = [
        state_dict_service_pb2.ListKeysResponse(entries=[entry("a", 1)], not_carried=["e"], step=3),
        state_dict_service_pb2.ListKeysResponse(entries=[entry("b", 2)], step=3),
    ]
    keys = keys_of(batches)
    assert [spec.key for spec in keys.entries] == ["a", "b"] and keys.not_carried == ("e",) and keys.step == 3
