"""JSON lines: the events that the command line prints, in a file."""

from __future__ import annotations

import json
from pathlib import Path

from modscope_client.cli.serialize import json_line
from modscope_client.exporters.jsonl import JsonLines
from tests.client.exporters.samples import METRICS, Armed, events
from tests.client.golden import compare


def export(file: Path) -> None:
    sink = JsonLines(str(file))
    sink.open(Armed())
    for event in events():
        sink.emit(event)
        assert file.read_text().endswith("}\n")
    sink.metrics(METRICS)
    sink.open(Armed())
    sink.close()


def test_lines_are_those_of_the_command_line_and_are_appended(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    export(file)
    text = file.read_text()
    compare("exporters/jsonl.txt", text)
    assert text == "".join(map(json_line, events()))
    loud = json.loads(text.splitlines()[5])["values"][1]
    assert (loud["role"], loud["stats"]["mean"]) == ("grad_input", "Infinity")
    assert [json.loads(line)["seq"] for line in text.splitlines()] == list(range(13))
    loss = json.loads(text.splitlines()[10])
    assert (loss["path"], loss["hook"], loss["type"], loss["step"]) == ("loss", "metric", "", 7)
    assert (loss["values"][0]["role"], loss["values"][0]["stats"]["mean"]) == ("metric", 0.25)
    export(file)
    assert file.read_text() == 2 * text


def test_a_sink_that_was_never_opened_closes(tmp_path: Path) -> None:
    JsonLines(str(tmp_path / "none")).close()
    assert not (tmp_path / "none").exists()
