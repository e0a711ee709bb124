"""Sinks: found by name, and told clearly where they cannot be."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from modscope_client import sinks
from modscope_client.errors import FailedPrecondition, NotFound
from modscope_client.exporters.jsonl import JsonLines
from modscope_client.exporters.prometheus import Prometheus
from modscope_client.exporters.tensorboard import TensorBoard
from modscope_client.sinks import GROUP, make_sink, sink_names


def test_our_own_are_registered(tmp_path: Path) -> None:
    assert {"jsonl", "prometheus", "tensorboard"} <= set(sink_names())
    for name, kind, serves in [
        ("jsonl", JsonLines, False),
        ("tensorboard", TensorBoard, False),
        ("prometheus", Prometheus, True),
    ]:
        sink = make_sink(name, "127.0.0.1:0")
        assert type(sink) is kind and sink.serves is serves
        sink.close()


def test_an_unknown_one() -> None:
    with pytest.raises(NotFound, match="there is no sink 'tensorbord'") as caught:
        make_sink("tensorbord", "runs")
    assert caught.value.reason == "UNKNOWN_SINK" and "tensorboard" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("no_such_package:Sink", "cannot be loaded: No module named 'no_such_package'"),
        ("modscope_client.sinks:Missing", "cannot be loaded"),
        ("builtins:str", "lacks what a sink has"),
    ],
)
def test_a_broken_one(value: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "entry_points", lambda group: [EntryPoint("broken", value, group)])
    assert sink_names() == ["broken"]
    with pytest.raises(FailedPrecondition, match=told) as caught:
        make_sink("broken", "x")
    assert caught.value.reason == "SINK"


def test_the_group_is_the_documented_one() -> None:
    assert GROUP == "modscope.sinks"
