"""run status, pause, resume, step, break, breaks, clear, wait."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.client.cli.conftest import Live, Modscope
from tests.end_to_end.serving import running_loop, until


@pytest.fixture
def loop(live: Live) -> Iterator[Live]:
    """A loop that reports the number of its step as its loss."""

    def iteration() -> None:
        live.step()
        live.scope.step(loss=float(live.scope.step_count))

    with running_loop(iteration):
        until(lambda: live.scope.step_count > 0, "the loop has begun")
        yield live


def test_a_run_that_does_not_train(live: Live, modscope: Modscope) -> None:
    outcome = modscope("run", "status")
    assert outcome.lines[0] == "no training at step 0"
    assert modscope("run", "status", "-o", "name").lines == ["no_training"]
    late = modscope("run", "wait", "--timeout", "100ms", "-o", "json")
    assert (late.code, json.loads(late.err)["code"]) == (7, "DEADLINE_EXCEEDED")
    late = modscope("run", "pause", "--timeout", "100ms")
    assert late.code == 7 and "withdrawn" in late.err and "--timeout" in late.err
    assert modscope("run", "status", "-o", "json").json["pause"] is None
    assert modscope("run", "pause", "--no-wait").code == 0
    assert modscope("run", "status", "-o", "json").json["pause"]["since"] is None
    assert modscope("run", "resume").lines[0] == "no training at step 0"


def test_paused_stepped_resumed(loop: Live, modscope: Modscope) -> None:
    paused = modscope("run", "pause", "-o", "json").json
    step = loop.scope.step_count
    assert (paused["state"], paused["step"]) == ("paused", step)
    assert paused["pause"]["lease"]["seconds"] == 600.0
    status = modscope("run", "status", "--history", "2")
    assert status.lines[0].startswith(f"paused at step {step:,}")
    assert any(line.strip().startswith("paused") and "by pause, for 0s" in line for line in status.lines)
    assert any("metric loss" in line and f"{step} at step {step:,}" in line for line in status.lines)
    assert len(modscope("run", "status", "--history", "2", "-o", "json").json["metrics"][0]["points"]) == 2
    assert modscope("run", "pause", "--lease", "2h", "-o", "json").json["pause"]["lease"]["seconds"] == 7200.0
    stepped = modscope("run", "step", "3", "-o", "json").json
    assert (stepped["state"], stepped["step"]) == ("paused", step + 3)
    assert stepped["pause"]["lease"]["seconds"] == 7200.0, "that of the pause before"
    assert modscope("set", "scale", "--fill", "2").lines[0].startswith(f"wrote 1 tensor at step {step + 3:,}")
    assert modscope("run", "wait").code == 0
    assert modscope("run", "resume", "-o", "name").code == 0
    until(lambda: loop.scope.step_count > step + 3, "the loop goes on")
    assert modscope("run", "step", "-o", "json").json["pause"]["lease"]["seconds"] == 600.0
    assert modscope("run", "resume").code == 0


def test_breaks(loop: Live, modscope: Modscope) -> None:
    assert modscope("run", "breaks").err == "no break is set\n"
    assert modscope("run", "breaks", "-o", "json").json == []
    assert modscope("run", "pause").code == 0
    target = loop.scope.step_count + 7
    outcome = modscope("run", "break", f"loss >= {target}", "--lease", "1h")
    (identity,) = modscope("run", "breaks", "-o", "name").lines
    assert outcome.lines == [f"{identity} pauses the run when loss >= {target}"]
    assert modscope("run", "resume").code == 0
    hit = modscope("run", "wait", "--timeout", "30s")
    assert hit.code == 0
    assert hit.lines[0].startswith(f"paused at step {target:,}")
    assert any(f"by break {identity}: loss >= {target}" in line for line in hit.lines)
    assert modscope("run", "clear", "b-99").code == 3
    header, row = modscope("run", "clear").lines
    assert header.split() == ["ID", "CONDITION", "HITS", "LEASE"] and row.split()[-2:] == ["1", "1h00m"]
    assert modscope("run", "clear").err == "no break was set\n"
    wrong = modscope("run", "break", "loss >", "-o", "json")
    assert (wrong.code, json.loads(wrong.err)["reason"]) == (5, "BAD_EXPRESSION")
    assert modscope("run", "resume").code == 0


def test_a_training_that_ends_is_no_pause(live: Live, modscope: Modscope) -> None:
    with running_loop(live.step):
        until(lambda: live.scope.step_count > 0, "the loop has begun")
    for words in (("wait",), ("step",)):
        outcome = modscope("run", *words, "-o", "json")
        assert outcome.code == 5
        assert outcome.json["state"] == "no_training"
        assert json.loads(outcome.err.splitlines()[-1])["reason"] == "NO_TRAINING"
