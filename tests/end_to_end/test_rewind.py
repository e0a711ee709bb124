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


def replayed(loop: Rewinding, step: int) -> tuple[list[float], list[float]]:
    """The losses from a snapshot on, when they came first and after the last rewind."""
    *earlier, last = passes(loop.losses)
    first = next(one for one in earlier if step in dict(one))
    return losses_from(first, step), losses_from(last, step)


def losses_from(losses: list[tuple[int, float]], step: int) -> list[float]:
    """The next losses, which began at that step."""
    begin = [at for at, _ in losses].index(step)
    return [loss for _, loss in losses[begin : begin + STEPS]]


def has_replayed(loop: Rewinding, step: int, rewinds: int = 1) -> bool:
    runs = passes(loop.losses)
    return len(runs) == 1 + rewinds and runs[-1][0][0] == step and len(runs[-1]) >= STEPS


def has_passed(loop: Rewinding, step: int) -> bool:
    losses = list(loop.losses)
    return step in dict(losses) and len(losses_from(losses, step)) == STEPS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["memory", "directory"])
def test_a_rewound_run_repeats_its_losses_bit_for_bit(kind: str, where: str, tmp_path: Path) -> None:
    loop = Rewinding(kind)
    directory = str(tmp_path) if where == "directory" else None
    with running(loop) as client:
        model = client.model()
        until(lambda: loop.scope.step_count > 20, "some steps")
        snapshot = model.save_snapshot("before", directory)
        until(lambda: has_passed(loop, snapshot.step), "the first pass")
        operation = model.restore_snapshot("before")
        assert (operation.kind, operation.outcome) == ("restore_snapshot", "applied")
        until(lambda: has_replayed(loop, snapshot.step), "the second pass")
    first, second = replayed(loop, snapshot.step)
    assert first == second
    assert len(set(first)) > STEPS // 2


def test_a_run_rewound_again_and_again_repeats_itself_again_and_again() -> None:
    loop = Rewinding("AdamW and LambdaLR")
    with running(loop) as client:
        model = client.model()
        until(lambda: loop.scope.step_count > 5, "some steps")
        step = model.save_snapshot("start").step
        until(lambda: has_passed(loop, step), "the first pass")
        for times in range(1, 4):
            model.restore_snapshot("start")
            until(lambda times=times: has_replayed(loop, step, times), "another pass")  # type: ignore[misc]
    first, *others = [losses_from(one, step) for one in passes(loop.losses)]
    assert others == [first] * 3


@pytest.mark.parametrize(
    "options",
    [{"zeroes": False}, {"scaled": True}],
    ids=["gradients that accumulate", "a scaler that skips steps"],
)
def test_what_else_decides_how_a_run_goes_on(options: dict[str, bool]) -> None:
    loop = Rewinding("AdamW and LambdaLR", **options)
    with running(loop) as client:
        model = client.model()
        until(lambda: loop.scope.step_count > 10, "some steps")
        step = model.save_snapshot("middle").step
        until(lambda: has_passed(loop, step), "the first pass")
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
        until(lambda: has_passed(loop, snapshot.step), "the first pass")
    (first,) = passes(loop.losses)
    with another_process(kind, seed=99) as (client, process):
        model = client.model()
        until(lambda: client.models()[0].step > snapshot.step + STEPS, "steps of its own")
        model.restore_snapshot("handed-over", str(tmp_path))
        until(lambda: client.models()[0].step > snapshot.step + STEPS, "the second pass")
        process.stdin.write("stop\n")
        process.stdin.flush()
        losses: list[Any] = json.loads(process.stdout.readline())
    second = passes([(step, loss) for step, loss in losses])[-1]
    assert losses_from(first, snapshot.step) == losses_from(second, snapshot.step)


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
