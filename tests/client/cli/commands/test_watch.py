"""watch: one line per event, and four ways to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import IO

import pytest
import yaml

from tests.client.cli.conftest import Live, Modscope


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "modscope_client", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    )


def first_line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=30)
    return process.returncode, err


def test_events_as_lines(training: Live, modscope: Modscope) -> None:
    outcome = modscope("watch", "body.*", "--type", "ReLU", "--count", "3")
    assert outcome.code == 0
    assert len(outcome.lines) == 3
    for line in outcome.lines:
        words = line.split()
        assert (words[0], words[2], words[3], words[4]) == ("step", "body.1", "forward", "output")
        assert "[5, 4] float32" in line
        assert "norm" in line
    assert "watching 1 module from step" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("3 events")


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_events_as_json(form: str, training: Live, modscope: Modscope) -> None:
    outcome = modscope("watch", "body.1", "--count", "4", "-o", form)
    assert (outcome.code, outcome.err) == (0, "")
    events = [json.loads(line) for line in outcome.lines]
    assert [event["seq"] for event in events] == [0, 1, 2, 3]
    for event in events:
        assert (event["path"], event["type"], event["hook"]) == ("body.1", "ReLU", "forward")
        (value,) = event["values"]
        assert value["stats"]["min"] >= 0
        assert value["stats"]["count"] == 20


def test_other_forms(training: Live, modscope: Modscope) -> None:
    documents = list(yaml.safe_load_all(modscope("watch", "body.1", "--count", "2", "-o", "yaml").out))
    assert [document["seq"] for document in documents] == [0, 1]
    assert modscope("watch", "body.1", "--count", "2", "-o", "name").lines == ["body.1", "body.1"]


def test_hooks_payload_and_every(training: Live, modscope: Modscope) -> None:
    outcome = modscope(
        "watch", "body.0", "--hook", "forward_pre", "--hook", "backward", "--payload", "tensor",
        "--every", "3", "--count", "4", "-o", "jsonl",
    )  # fmt: skip
    events = [json.loads(line) for line in outcome.lines]
    assert {event["hook"] for event in events} == {"forward_pre", "backward"}
    assert all(event["step"] % 3 == 0 for event in events)
    arrays = [
        value["array"] for event in events if event["hook"] == "forward_pre" for value in event["values"]
    ]
    assert [len(array) for array in arrays] == [5] * len(arrays)
    assert modscope("watch", "body.0", "--payload", "none", "--count", "1", "-o", "json").code == 0


def test_parts_and_windows(training: Live, modscope: Modscope) -> None:
    outcome = modscope(
        "watch", "body.0", "--payload", "tensor", "--index", "[0, :2]", "--dtype", "float16",
        "--start", "1", "--every", "5", "--first-call", "--phase", "evaluation", "--count", "2", "-o", "json",
    )  # fmt: skip
    events = [json.loads(line) for line in outcome.lines]
    assert all(event["step"] % 5 == 0 and event["step"] >= 1 for event in events)
    assert [len(value["array"]) for event in events for value in event["values"]] == [2, 2]


def test_gradients_as_lines(training: Live, modscope: Modscope) -> None:
    outcome = modscope("watch", "body.[02]", "--hook", "gradient", "--count", "4")
    assert outcome.code == 0
    told = {line.split()[2]: line.partition("gradient")[2].strip() for line in outcome.lines}
    assert told["body.2.weight"].startswith("[4] float32 mean ")
    assert told["body.0.weight"].startswith("no gradient: the parameter is frozen")


def test_a_hook_that_cannot_fire_is_blind_and_says_why(training: Live) -> None:
    process = start("watch", "body.1", "--phase", "training")
    while "is blind" not in (line := first_line(process.stderr)):
        assert line, "it has ended before it said so"
    assert line == "note: body.1: its forward hook is blind: called in evaluation only\n"
    process.send_signal(signal.SIGINT)
    code, err = end(process)
    assert code == 130
    assert err.splitlines() == [
        "note: body.1: its forward hook never fired: called in evaluation only", "0 events",
    ]  # fmt: skip


def test_histograms_and_samples(training: Live, modscope: Modscope) -> None:
    asked = ("watch", "body.0", "--payload", "histogram", "--count", "1")
    (line,) = modscope(*asked).lines
    assert line.count("|") == 2 and "\u2588" in line and "elements" not in line
    (line,) = modscope(*asked, "--sample", "5").lines
    assert " elements, mean +- " in line
    (value,) = json.loads(modscope(*asked, "--sample", "5", "-o", "json").lines[0])["values"]
    assert sum(value["histogram"]["counts"]) == value["sample"]["elements"] <= 5
    assert modscope(*asked, "--sample", "0").code == 2


def test_it_ends_after_a_time_without_an_event(live: Live, modscope: Modscope) -> None:
    outcome = modscope("watch", "*", "--duration", "200ms")
    assert (outcome.code, outcome.out) == (0, "")
    assert "0 events" in outcome.err
    assert all(hook["owner"] != "watch" for hook in modscope("hooks", "-o", "json").json)


def test_control_c_ends_it_with_130_and_its_hooks_go(training: Live, modscope: Modscope) -> None:
    process = start("watch", "body.1")
    assert "body.1" in first_line(process.stdout)
    assert any(hook["owner"] == "watch" for hook in modscope("hooks", "-o", "json").json)
    process.send_signal(signal.SIGINT)
    code, err = end(process)
    assert code == 130
    assert "Traceback" not in err
    assert "event" in err.splitlines()[-1]
    assert all(hook["owner"] != "watch" for hook in modscope("hooks", "-o", "json").json)


def test_an_event_is_written_at_once(live: Live) -> None:
    with start("watch", "body.1", "--count", "2") as process:
        assert "watching 1 module" in first_line(process.stderr)
        live.step()
        assert "body.1" in first_line(process.stdout)
        assert process.poll() is None
        live.step()
        assert end(process)[0] == 0


def test_a_reader_that_leaves_ends_it(training: Live) -> None:
    with start("watch", "body.1", "-o", "jsonl") as process:
        first_line(process.stdout)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(30) == 0


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--count", "1000"], 6)])
def test_the_server_closes(options: list[str], code: int, live: Live) -> None:
    process = start("watch", "body.1", *options)
    assert "watching" in first_line(process.stderr)
    live.scope.close()
    exit_code, err = end(process)
    assert exit_code == code
    assert "the watch has ended" in err


def test_nothing_to_watch(live: Live, modscope: Modscope) -> None:
    assert modscope("watch", "nope.*").code == 3
    assert modscope("watch", "body.1", "--hook", "sideways").code == 2
    assert modscope("watch", "body.1", "--every", "0").code == 2
    assert modscope("watch", "body.1", "--duration", "soon").code == 2
