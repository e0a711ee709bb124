"""Under loops of every kind: steps are counted, changes are safe and land at their step, nothing hangs.

MODSCOPE_STRESS=10 makes ten times as many changes; `make stress` does.
"""

from __future__ import annotations

import bisect
import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from modscope_client import Client, connect
from modscope_client.handles import RemoteModel
from tests.end_to_end.loops import KINDS, Loop, Probed
from tests.end_to_end.serving import TIMEOUT, running_loop, until

CHANGES = 150 * int(os.environ.get("MODSCOPE_STRESS", "1"))


@pytest.fixture(params=list(KINDS))
def loop(request: pytest.FixtureRequest) -> Loop:
    torch.manual_seed(0)
    return KINDS[request.param]()


@contextmanager
def controlled(loop: Loop) -> Iterator[Client]:
    """The loop attached and running, and a client that may change its models."""
    with (
        loop.attach() as scope,
        connect(scope.address, token=scope.token, timeout=TIMEOUT) as client,
        running_loop(loop),
    ):
        until(lambda: loop.done > 2, "iterations")
        yield client


def test_iterations_are_counted(loop: Loop) -> None:
    each = len(loop.models)  # a training forward of a registered root begins an iteration
    with loop.attach() as scope:
        for _ in range(12):
            loop()
        if "scaler" in loop.extras:
            loop.models["model"](torch.randn(16, 4))  # only the next forward tells that a step was skipped
        for_certain = scope.step_count
        loop.models[next(iter(loop.models))](torch.randn(16, 4))
        assert for_certain <= scope.step_count == 12 * each


def test_random_changes_are_safe_and_visible_at_their_step(loop: Loop) -> None:
    with controlled(loop) as client:
        acknowledged: dict[str, list[tuple[float, int]]] = {name: [] for name in loop.models}
        dice = random.Random(1)
        for number in range(CHANGES):
            name = dice.choice(list(loop.models))
            model = client.model(name)
            if number % 3 == 0:
                operation = model.write("probe", fill=float(number + 1))
                acknowledged[name].append((float(number + 1), operation.step))
                assert model.read("probe") == number + 1
            else:
                _change(dice, model)
        for name in loop.models:
            client.model(name).unfreeze("{first,norm,last}.*")
        before = loop.done
        until(lambda: loop.done > before + 3, "training goes on")
    for name, written in acknowledged.items():
        _check_visible(loop.models[name], written)


def _change(dice: random.Random, model: RemoteModel) -> None:
    """One change at random; each leaves the loop able to go on."""
    paths = ("first.weight", "first.bias", "norm.weight", "last.weight", "last.bias")
    path = dice.choice(paths)
    changes: list[Callable[[], object]] = [
        lambda: model.write(path, fill=dice.uniform(-0.1, 0.1)),
        lambda: model.write("still", fill=dice.uniform(-1, 1)),
        lambda: model.reinitialize(dice.choice(("first", "last", "norm", "{first,last}"))),
        lambda: model.reinitialize(type="Linear", scheme="normal_", std=0.1, parameter="weight"),
        lambda: model.freeze(dice.choice(("first", "last.bias", "norm.weight")), force=True),
        lambda: model.unfreeze("{first,norm,last}.*"),
    ]
    dice.choice(changes)()


def _check_visible(model: Probed, written: list[tuple[float, int]]) -> None:
    """Every forward of a later step finds the value or a newer one; no forward of an earlier step does."""
    assert written
    assert [step for _, step in written] == sorted(step for _, step in written)
    steps = [step for step, _ in model.seen]
    values = [value for _, value in model.seen]
    assert steps == sorted(steps)
    most_before = [-1.0, *itertools.accumulate(values, max)]
    least_after = [*reversed([float("inf"), *itertools.accumulate(reversed(values), min)])]
    for value, step in written:
        assert least_after[bisect.bisect_right(steps, step)] >= value, (value, step)
        assert most_before[bisect.bisect_left(steps, step)] < value, (value, step)


def test_every_kind_of_read_is_served(loop: Loop) -> None:
    name = next(iter(loop.models))
    with controlled(loop) as client:
        model = client.model(name)
        steps = []
        for _ in range(5):
            _, step = model.read("first.weight", with_step=True)
            steps.append(step)
            assert set(model.state_dict()) == set(loop.models[name].state_dict())
            assert len(model.parameters(stats=True)) == 7
        assert steps == sorted(steps)
