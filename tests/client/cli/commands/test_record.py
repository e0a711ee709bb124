"""record and replay: a watch into a file, and out of it without a server."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.client.cli.commands.test_watch import end, first_line, start
from tests.client.cli.conftest import Live, Modscope


@pytest.fixture
def recording(training: Live, modscope: Modscope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Five events of one module; the server is out of sight."""
    file = str(tmp_path / "five.msrec")
    outcome = modscope("record", file, "body.*", "--type", "ReLU", "--count", "5")
    assert (outcome.code, outcome.out) == (0, "")
    assert "recording 1 module, from step" in outcome.err
    assert f"5 events in {file}" in outcome.err.splitlines()[-1]
    monkeypatch.setenv("MODSCOPE_ADDRESS", f"unix:{tmp_path}/none.sock")
    return file


def test_replay_prints_what_watch_would_have(recording: str, modscope: Modscope) -> None:
    outcome = modscope("replay", recording)
    assert outcome.code == 0 and len(outcome.lines) == 5
    assert all(line.split()[2:4] == ["body.1", "forward"] for line in outcome.lines)
    assert "recorded: 1 module from step" in outcome.err
    lines = modscope("replay", recording, "-o", "jsonl")
    assert (lines.code, lines.err) == (0, "")
    assert [json.loads(line)["seq"] for line in lines.lines] == [0, 1, 2, 3, 4]
    assert modscope("replay", recording, "-o", "name", "--count", "2").lines == ["body.1", "body.1"]


def test_replay_into_sinks(recording: str, modscope: Modscope, tmp_path: Path) -> None:
    assert modscope("replay", recording, "--into", "jsonl", str(tmp_path / "e")).code == 0
    assert (tmp_path / "e").read_text() == modscope("replay", recording, "-o", "jsonl").out
    outcome = modscope("replay", recording, "--into", "tensorboard", str(tmp_path / "runs"))
    assert (outcome.code, outcome.err) == (0, f"5 events into {tmp_path}/runs\n")
    found = EventAccumulator(str(tmp_path / "runs")).Reload()
    assert len(found.Scalars("forward/body.1/mean")) == 5
    assert modscope("replay", recording, "--into", "tensorbord", "x").code == 3
    assert modscope("replay", recording, "--into", "jsonl").code == 2


def test_a_sink_that_serves_stays(recording: str) -> None:
    process = start("replay", recording, "--into", "prometheus", "127.0.0.1:0")
    assert "http://127.0.0.1:" in first_line(process.stderr)
    process.send_signal(signal.SIGINT)
    code, err = end(process)
    assert (code, err) == (130, "")


def test_a_file_that_breaks_off_or_is_none(recording: str, modscope: Modscope, tmp_path: Path) -> None:
    file = Path(recording)
    file.write_bytes(file.read_bytes()[:-20])
    outcome = modscope("replay", recording, "-o", "json")
    assert outcome.code == 5
    assert json.loads(outcome.err)["reason"] == "TRUNCATED"
    file.write_text("step,path\n")
    outcome = modscope("replay", recording)
    assert outcome.code == 5 and "is no recording" in outcome.err
    assert modscope("replay", str(tmp_path / "none")).code == 2


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_whole_file(
    number: int, exit_code: int, training: Live, modscope: Modscope, tmp_path: Path
) -> None:
    file = tmp_path / "r"
    process = start("record", str(file), "body.1")
    assert "recording 1 module" in first_line(process.stderr)
    process.send_signal(number)
    code, err = end(process)
    assert code == exit_code and "Traceback" not in err
    assert modscope("replay", str(file), "-o", "jsonl").code == 0
    assert all(hook["owner"] != "watch" for hook in modscope("hooks", "-o", "json").json)


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--count", "1000"], 6)])
def test_the_server_closes(
    options: list[str], code: int, live: Live, modscope: Modscope, tmp_path: Path
) -> None:
    file = tmp_path / "r"
    process = start("record", str(file), "body.1", *options)
    assert "recording" in first_line(process.stderr)
    live.step()
    live.scope.close()
    exit_code, err = end(process)
    assert exit_code == code and "the watch has ended" in err
    replayed = modscope("replay", str(file), "-o", "jsonl")
    assert len(replayed.lines) == 1
    assert replayed.code == (0 if code == 0 else 5)


def test_nothing_to_record(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    assert modscope("record", str(tmp_path / "r"), "nope.*").code == 3
    assert not (tmp_path / "r").exists()
    assert modscope("record", str(tmp_path / "none" / "r"), "body.1", "--duration", "1s").code == 1
    assert modscope("record", str(tmp_path / "r"), "--duration", "200ms").code == 0
    assert modscope("replay", str(tmp_path / "r"), "-o", "json").out == ""
