"""How long a wait for a pause lasts, and what ends it, by a clock that the test moves."""

from __future__ import annotations

import pytest

from modscope.v1 import run_pb2
from modscope_client import run_control, waiting
from modscope_client.errors import DeadlineExceeded
from modscope_client.types import RunStatus
from modscope_client.waiting import Waiting
from tests.client.test_renewals import Clock

RUNNING, PAUSED = run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_PAUSED
ENDED = run_pb2.RUN_STATE_NO_TRAINING


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(waiting, "time", made)
    return made


def status(step: int, state: run_pb2.RunState.ValueType = RUNNING) -> RunStatus:
    return run_control.run_status(run_pb2.RunStatus(step=step, state=state))


def test_each_step_has_the_whole_time(clock: Clock) -> None:
    wait = Waiting.for_steps(10.0)
    wait.see(status(7))
    clock.now += 9
    wait.see(status(7))
    assert wait.left() == 1.0, "a status that is no step gives no time"
    wait.see(status(8))
    assert wait.left() == 10.0
    clock.now += 10
    with pytest.raises(DeadlineExceeded, match="without a step; it will be after its steps: it is at step 8"):
        wait.left()


def test_a_pause_has_its_time_whatever_the_run_does(clock: Clock) -> None:
    wait = Waiting.for_pause(10.0)
    clock.now += 9
    wait.see(status(8))
    assert wait.left() == 1.0
    clock.now += 1
    with pytest.raises(DeadlineExceeded, match="10 s, and the wish to pause it is withdrawn"):
        wait.left()


def test_a_wait_without_a_bound_has_long_streams(clock: Clock) -> None:
    wait = Waiting(None)
    clock.now += 1e6
    assert wait.left() == 3600.0


@pytest.mark.parametrize(
    ("made", "ends"),
    [(Waiting.for_pause, False), (Waiting.for_steps, True), (Waiting, True)],
    ids=["pause", "steps", "wait"],
)
def test_a_training_that_is_over_ends_all_but_a_pause(made: type[Waiting], ends: bool) -> None:
    for seen, done in ((status(0, ENDED), False), (status(3, ENDED), ends), (status(3, PAUSED), True)):
        wait = made(10.0)
        assert not wait.done
        wait.see(seen)
        assert wait.done is done and wait.status == seen
