"""Recordings: every event comes back as it was, and a file that is not whole says so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from modscope import __version__
from modscope_client import recording_file
from modscope_client.errors import InvalidArgument, NotFound
from modscope_client.recording import Recorder, Recording, pour
from modscope_client.sinks import make_sink
from modscope_client.types import Event
from tests.client.test_feed import Kept
from tests.end_to_end.serving import Served, bits, served


def record(
    live: Served, file: Path, steps: int = 3, count: int | None = None, **watch: object
) -> list[Event]:
    """Records what a model does; gives the events that the watch itself gave."""
    subscription = live.model.watch(**watch)  # type: ignore[arg-type]
    with Recorder(file, live.model.info(), subscription.request, count=count) as recorder:
        subscription.tap = recorder.take
        with subscription as events:
            for step in range(steps):
                live.module(torch.full((2, 3), step + 0.5))
                live.scope.step()
            expected = steps * len(events.paths) * len(events.request.hooks)
            return [next(events) for _ in range(expected)]


def replayed(file: Path) -> list[Event]:
    with Recording(file) as recording:
        return list(recording)


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh())


def test_every_event_as_it_was(tmp_path: Path) -> None:
    with served(module(), name="net") as live:
        seen = record(live, tmp_path / "r", hooks=("forward_pre", "forward"), payload="histogram")
    with Recording(tmp_path / "r") as recording:
        assert recording.paths == ("", "0", "1") and recording.step == 0
        assert (recording.model, recording.hooks) == ("net", ("forward_pre", "forward"))
        assert list(recording) == seen and len(seen) == 18
        assert recording.counters.published == 18
        assert list(recording) == []


def test_tensors_bit_by_bit_and_larger_than_a_message(tmp_path: Path) -> None:
    with served(nn.Identity()) as live:
        given = [torch.randn(700_000).bfloat16(), torch.randn(700_000), torch.tensor([float("nan")])]
        subscription = live.model.watch(payload="tensor")
        with Recorder(tmp_path / "r", live.model.info(), subscription.request) as recorder:
            subscription.tap = recorder.take
            with subscription as events:
                for tensor in given:
                    live.module(tensor)
                    next(events)
    assert [bits(event.values[0].array) for event in replayed(tmp_path / "r")] == [bits(t) for t in given]


def test_the_header_can_be_read_with_zcat(tmp_path: Path) -> None:
    with served(module(), name="net") as live:
        record(live, tmp_path / "r", steps=1, glob="0", every=2)
    magic, header, _ = gzip.decompress((tmp_path / "r").read_bytes()).split(b"\n", 2)
    assert magic == b"modscope recording"
    told = json.loads(header)
    assert (told["version"], told["modscope"]) == (1, __version__)
    assert told["model"]["name"] == "net" and told["model"]["modules"] == 3
    assert told["watch"]["glob"] == "0" and told["watch"]["every"] == 2
    with Recording(tmp_path / "r") as recording:
        assert recording.header == told


@pytest.mark.parametrize("payload", ["stats", "tensor"])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_no_more_than_so_many(count: int, payload: str, tmp_path: Path) -> None:
    with served(module()) as live:
        seen = record(live, tmp_path / "r", count=count, payload=payload)
    kept = replayed(tmp_path / "r")
    assert kept == seen[:count]
    if payload == "tensor":
        assert [bits(e.values[0].array) for e in kept] == [bits(e.values[0].array) for e in seen[:count]]


def test_a_file_that_breaks_off_anywhere(tmp_path: Path) -> None:
    with served(module()) as live:
        seen = record(live, tmp_path / "r", steps=1)
    whole = (tmp_path / "r").read_bytes()
    counts = set()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        came: list[Event] = []
        with pytest.raises(InvalidArgument) as caught, Recording(tmp_path / "cut") as recording:
            came.extend(iter(recording.__next__, None))
        assert caught.value.reason in ("TRUNCATED", "NOT_A_RECORDING"), size
        assert came == seen[: len(came)]
        counts.add(caught.value.reason)
    assert counts == {"TRUNCATED", "NOT_A_RECORDING"}


def test_a_recorder_that_is_killed_loses_no_more_than_its_last_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_file, "_FLUSH_SECONDS", 0.0)
    with served(module()) as live:
        subscription = live.model.watch("0")
        with Recorder(tmp_path / "r", live.model.info(), subscription.request) as recorder:
            subscription.tap = recorder.take
            with subscription as events:
                live.module(torch.ones(1, 3))
                seen = next(events)
                (tmp_path / "left").write_bytes((tmp_path / "r").read_bytes())
    with Recording(tmp_path / "left") as recording:
        assert next(recording) == seen
        with pytest.raises(InvalidArgument, match="breaks off"):
            next(recording)


def test_an_end_that_counts_other_messages(tmp_path: Path) -> None:
    with served(module()) as live:
        seen = record(live, tmp_path / "r", steps=1)
    content = bytearray(gzip.decompress((tmp_path / "r").read_bytes()))
    content[-4] += 1
    (tmp_path / "r").write_bytes(gzip.compress(content))
    with Recording(tmp_path / "r") as recording:
        assert [next(recording) for _ in seen] == seen
        with pytest.raises(InvalidArgument, match="messages and says") as caught:
            next(recording)
    assert caught.value.reason == "DAMAGED"


def test_a_recording_that_was_not_finished_is_poured_up_to_there(tmp_path: Path) -> None:
    with served(module()) as live:
        subscription = live.model.watch("0")
        recorder = Recorder(tmp_path / "r", live.model.info(), subscription.request)
        subscription.tap = recorder.take
        with subscription as events:
            live.module(torch.ones(1, 3))
            next(events)
        recorder.__exit__(RuntimeError, RuntimeError("killed"), None)
    sink = Kept()
    with Recording(tmp_path / "r") as recording, pytest.raises(InvalidArgument, match="breaks off") as caught:
        pour(recording, sink)
    assert caught.value.reason == "TRUNCATED"
    assert (len(sink.events), len(sink.told), sink.closed) == (1, 1, 1)


def test_a_flipped_bit_is_never_replayed(tmp_path: Path) -> None:
    with served(module()) as live:
        seen = record(live, tmp_path / "r", steps=1)
    whole = (tmp_path / "r").read_bytes()
    noticed = 0
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 0x10
        (tmp_path / "broken").write_bytes(broken)
        came: list[Event] = []
        try:
            with Recording(tmp_path / "broken") as recording:
                for event in recording:
                    came.append(event)
            assert came == seen, "a flip that is not noticed must be without effect"
        except InvalidArgument:
            noticed += 1
            assert came == seen[: len(came)]
    assert noticed >= len(whole) - 10, "only gzip's own time, system and flags may go unnoticed"


@pytest.mark.parametrize("content", [b"", b"step,path\n"])
def test_files_that_are_not_even_compressed(content: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "f", content, "NOT_A_RECORDING")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"modscope", "NOT_A_RECORDING"),
        (b"modscope recording\n{}\n", "DAMAGED"),
        (b"modscope recording\nno json\n", "DAMAGED"),
        (b'modscope recording\n{"version": 2, "modscope": "9.0"}\n', "LATER_VERSION"),
        (b'modscope recording\n{"version": 1}\n' + bytes(8), "DAMAGED"),
        (b'modscope recording\n{"version": 1}\n' + b"\xff" * 8, "DAMAGED"),
        (b'modscope recording\n{"version": 1}\n' + b"\x01\0\0\0\0\0\0\0a", "DAMAGED"),
    ],
)
def test_foreign_files(content: bytes, reason: str, tmp_path: Path) -> None:
    # Compressed here, since that writes the time, and workers name tests by their parameters.
    refused(tmp_path / "f", gzip.compress(content), reason)


def refused(file: Path, content: bytes, reason: str) -> None:
    file.write_bytes(content)
    with pytest.raises(InvalidArgument) as caught:
        Recording(file)
    assert caught.value.reason == reason
    assert str(file) in caught.value.message


def test_into_every_sink(tmp_path: Path) -> None:
    with served(module()) as live:
        seen = record(live, tmp_path / "r")
    for name, target in {
        "jsonl": str(tmp_path / "events.jsonl"),
        "tensorboard": str(tmp_path / "runs"),
        "prometheus": "127.0.0.1:0",
    }.items():
        with Recording(tmp_path / "r") as recording:
            assert pour(recording, make_sink(name, target)) == len(seen)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [event.seq for event in seen]
    assert len(list((tmp_path / "runs").iterdir())) == 1
    sink = Kept()
    with Recording(tmp_path / "r") as recording:
        assert pour(recording, sink, count=2) == 2
    assert sink.events == seen[:2]
    assert (sink.told[0].connected, sink.told[0].model) == (False, "model")


def test_no_file_where_nothing_is_watched(tmp_path: Path) -> None:
    with served(module()) as live:
        with pytest.raises(NotFound):
            record(live, tmp_path / "r", glob="nope")
    assert not (tmp_path / "r").exists()
