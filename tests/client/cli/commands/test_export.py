"""export: a watch into each sink, by the command line."""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.request
from contextlib import closing
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modscope_client import sinks
from tests.client.cli.commands.test_watch import end, first_line, start
from tests.client.cli.conftest import Live, Modscope
from tests.client.test_feed import Kept


def test_jsonl(training: Live, modscope: Modscope, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    outcome = modscope("export", "jsonl", str(file), "body.*", "--type", "ReLU", "--count", "3")
    assert (outcome.code, outcome.out) == (0, "")
    assert "watching 1 module from step" in outcome.err and str(file) in outcome.err
    assert outcome.err.splitlines()[-1].startswith("3 events exported")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["seq"], line["path"]) for line in lines] == [(0, "body.1"), (1, "body.1"), (2, "body.1")]
    assert all(hook["owner"] != "watch" for hook in modscope("hooks", "-o", "json").json)


def test_tensorboard(training: Live, modscope: Modscope, tmp_path: Path) -> None:
    outcome = modscope("export", "tensorboard", str(tmp_path), "body.1", "--count", "3", "--every", "2")
    assert outcome.code == 0
    found = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "histograms": 0}).Reload()
    points = found.Scalars("forward/body.1/max")
    assert len(points) == 3 and all(point.step % 2 == 0 for point in points)
    drawn = found.Histograms("forward/body.1/histogram")
    assert [point.step for point in drawn] == [point.step for point in points]
    assert all(sum(point.histogram_value.bucket) == 20 for point in drawn)


def test_prometheus(training: Live, modscope: Modscope) -> None:
    process = start("export", "prometheus", "--port", "0", "body.1")
    said = first_line(process.stderr)
    (place,) = re.findall(r"http://127\.0\.0\.1:\d+/metrics", said)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with closing(opener.open(place, timeout=30)) as answer:
        assert "modscope_build_info" in answer.read().decode()
    process.send_signal(signal.SIGINT)
    code, err = end(process)
    assert code == 130 and "Traceback" not in err
    assert "exported" in err.splitlines()[-1]


def test_it_ends_after_a_time_without_an_event(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    outcome = modscope("export", "jsonl", str(tmp_path / "e"), "--duration", "200ms")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (0, "0 events exported")
    assert (tmp_path / "e").read_text() == ""


def test_a_sink_of_another_package(
    training: Live, modscope: Modscope, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Kept] = []

    def factory(target: str) -> Kept:
        made.append(Kept())
        made[-1].place = target
        return made[-1]

    monkeypatch.setattr(sys.modules[__name__], "factory", factory, raising=False)
    points = [EntryPoint("mine", f"{__name__}:factory", sinks.GROUP), *entry_points(group=sinks.GROUP)]
    monkeypatch.setattr(sinks, "entry_points", lambda group: points)
    assert "  mine " in modscope("export", "--help").out
    assert "TARGET" in modscope("export", "mine", "--help").out
    outcome = modscope("export", "mine", "somewhere", "body.1", "--count", "2")
    assert (outcome.code, len(made)) == (0, 1)
    assert "into somewhere" in outcome.err
    assert [event.path for event in made[0].events] == ["body.1", "body.1"]
    assert made[0].closed == 1


def test_refusals(live: Live, modscope: Modscope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert modscope("export", "jsonl", str(tmp_path / "e"), "nope.*").code == 3
    assert modscope("export", "jsonl", str(tmp_path / "none" / "e")).code == 1
    assert modscope("export", "jsonl", str(tmp_path / "e"), "--payload", "all").code == 2
    assert modscope("export", "prometheus").code == 2
    assert modscope("export", "prometheus", "--port", "70000").code == 2
    outcome = modscope("export", "tensorbord", "runs")
    assert outcome.code == 2 and "tensorboard" in outcome.err.partition("hint: ")[2]
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    outcome = modscope("export", "tensorboard", str(tmp_path / "t"))
    assert outcome.code == 5
    assert "pip install 'modscope[tensorboard]'" in outcome.err
    monkeypatch.setenv("MODSCOPE_ADDRESS", f"unix:{tmp_path}/none.sock")
    assert modscope("export", "jsonl", str(tmp_path / "e")).code == 6
