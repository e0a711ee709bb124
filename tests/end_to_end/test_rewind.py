"""A run that is rewound to a snapshot and fed the same batches repeats its losses bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from modscope_client import Client, connect
from tests.end_to_end.rewinding import KINDS, Rewinding, passes
from tests.end_to_end.serving import TIMEOUT, running_loop, until

STEPS = 50


@contextmanager
def running(loop: Rewinding) -> Iterator[Client]:
    with loop.attach() as scope, connect(scope.address, token=scope.token, timeout=TIMEOUT) as client:
        with running_loop(loop):
            yield client


def replayed(loop: Rewinding, step: int) -> tuple[dict[int, float], dict[int, float]]:
    """The losses of the steps from a snapshot on, when they came first and after the last rewind."""
    *earlier, last = passes(loop.losses)
    first = next(one for one in earlier if step in one)
    wanted = range(step, step + STEPS)
    return {at: first[at] for at in wanted}, {at: last[at] for at in wanted}


def has_replayed(loop: Rewinding, step: int) -> bool:
    runs = passes(loop.losses)
    return len(runs) > 1 and min(runs[-1]) == step and len(runs[-1]) >= STEPS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["memory", "directory"])
def test_a_rewound_run_repeats_its_losses_bit_for_bit(kind: str, where: str, tmp_path: Path) -> None:
    loop = Rewinding(kind)
    directory = str(tmp_path) if where == "directory" else None
    with running(loop) as client:
        model = client.model()
        until(lambda: loop.scope.step_count > 20, "some steps")
        snapshot = model.save_snapshot("before", directory)
        until(lambda: loop.scope.step_count >= snapshot.step + STEPS + 5, "the first pass")
        operation = model.restore_snapshot("before")
        assert (operation.kind, operation.outcome) == ("restore_snapshot", "applied")
        until(lambda: has_replayed(loop, snapshot.step), "the second pass")
    first, second = replayed(loop, snapshot.step)
    assert first == second
    assert len(set(first.values())) > STEPS // 2


def test_a_run_rewound_again_and_again_repeats_itself_again_and_again() -> None:
    loop = Rewinding("AdamW and LambdaLR")
    with running(loop) as client:
        model = client.model()
        until(lambda: loop.scope.step_count > 5, "some steps")
        step = model.save_snapshot("start").step
        until(lambda: loop.scope.step_count >= step + STEPS, "the first pass")
        for times in range(1, 4):
            model.restore_snapshot("start")
            until(lambda: len(passes(loop.losses)) > times and has_replayed(loop, step), "another pass")  # noqa: B023
    runs = [{at: one[at] for at in range(step, step + STEPS)} for one in passes(loop.losses)]
    assert len(runs) == 4
    assert all(one == runs[0] for one in runs)


def test_gradients_that_accumulate_are_a_part_of_it() -> None:
    loop = Rewinding("AdamW", zeroes=False)
    with running(loop) as client:
        model = client.model()
        until(lambda: loop.scope.step_count > 10, "some steps")
        step = model.save_snapshot("middle").step
        until(lambda: loop.scope.step_count >= step + STEPS, "the first pass")
        model.restore_snapshot("middle")
        until(lambda: has_replayed(loop, step), "the second pass")
    first, second = replayed(loop, step)
    assert first == second


@contextmanager
def another_process(kind: str, seed: int) -> Iterator[tuple[Client, subprocess.Popen[str]]]:
    """The same loop in a process of its own, which began with other weights."""
    command = [sys.executable, "-m", "tests.end_to_end.rewinding", kind, str(seed)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address, token = json.loads(process.stdout.readline())
        with connect(address, token=token, timeout=TIMEOUT) as client:
            yield client, process
    finally:
        process.kill()
        process.wait(TIMEOUT)
        process.stdin.close()
        process.stdout.close()


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "AdamW and LambdaLR"])
def test_another_process_goes_on_from_a_directory_bit_for_bit(kind: str, tmp_path: Path) -> None:
    loop = Rewinding(kind)
    with running(loop) as client:
        until(lambda: loop.scope.step_count > 20, "some steps")
        snapshot = client.model().save_snapshot("handed-over", str(tmp_path))
        until(lambda: loop.scope.step_count >= snapshot.step + STEPS, "the first pass")
    (first,) = passes(loop.losses)
    with another_process(kind, seed=99) as (client, process):
        model = client.model()
        until(lambda: client.models()[0].step > 3, "steps of its own")
        model.restore_snapshot("handed-over", str(tmp_path))
        reached = snapshot.step + STEPS
        until(lambda: client.models()[0].step >= reached, "the second pass")
        process.stdin.write("stop\n")
        process.stdin.flush()
        losses: list[Any] = json.loads(process.stdout.readline())
    second = passes([(step, loss) for step, loss in losses])[-1]
    wanted = range(snapshot.step, reached - 1)
    assert {at: first[at] for at in wanted} == {at: second[at] for at in wanted}


def test_an_undone_rewind_leaves_the_run_as_it_was_before_it() -> None:
    loop = Rewinding("AdamW and LambdaLR")
    with loop.attach() as scope, connect(scope.address, token=scope.token, timeout=TIMEOUT) as client:
        model = client.model()
        for _ in range(5):
            loop()
        model.save_snapshot("early")
        for _ in range(20):
            loop()
        before, count = _state(loop), scope.step_count
        operation = model.restore_snapshot("early")
        assert scope.step_count == 5
        assert _state(loop) != before
        model.undo(operation.id)
        assert scope.step_count == count
        assert _state(loop) == before


def _state(loop: Rewinding) -> str:
    """All that decides how the run goes on, as text."""
    torch.set_printoptions(precision=20, threshold=10**9)
    parts = [
        {name: tensor.tolist() for name, tensor in loop.model.state_dict().items()},
        [parameter.grad for parameter in loop.model.parameters()],
        loop.optimizer.state_dict(),
        loop.scheduler.state_dict(),
        torch.get_rng_state().tolist(),
    ]
    torch.set_printoptions(profile="default")
    return repr(parts)
