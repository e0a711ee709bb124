"""Beside a training loop: whole reads, writes between steps, watches that hold nothing up, equal losses."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import modscope_server
from modscope_client import connect
from tests.end_to_end.serving import TIMEOUT, bits, running_loop, served, until


class Counter(nn.Module):
    """Two weights with a gradient of 1 everywhere: under SGD with lr 1 an element is minus the step count."""

    def __init__(self, size: int = 200_000) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(size))
        self.b = nn.Parameter(torch.zeros(size))

    def forward(self) -> torch.Tensor:
        return self.a.sum() + self.b.sum()


class Counting:
    """One iteration of training a Counter, which notes a weight that changes between forward and step."""

    def __init__(self, model: Counter) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        self.torn: list[int] = []
        self.steps = 0

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        loss = self.model()
        seen = self.model.a.detach().clone()
        loss.backward()
        if not torch.equal(seen, self.model.a):
            self.torn.append(self.steps)
        self.optimizer.step()
        self.steps += 1


def whole(array: Any) -> numpy.ndarray[Any, Any]:
    assert isinstance(array, numpy.ndarray)
    return array


def test_reads_are_whole_and_of_one_step() -> None:
    model = Counter()
    counting = Counting(model)
    with served(model, counting.optimizer) as live, running_loop(counting):
        steps = []
        for _ in range(20):
            arrays, step = live.model.read(["a", "b"], with_step=True)
            assert (arrays["a"] == -step).all()
            assert (arrays["b"] == -step).all()
            state = live.model.state_dict()
            (value,) = {value for array in state.values() for value in numpy.unique(whole(array))}
            assert value <= -step
            (info,) = live.model.parameters("a", stats=True)
            assert info.stats is not None
            assert info.stats.min == info.stats.max
            grad, _ = live.model.read("a", what="grad", with_step=True)
            assert (grad == 1).all()
            steps.append(step)
        assert steps == sorted(steps)
        assert steps[-1] > steps[0]


def test_writes_land_between_steps() -> None:
    model = Counter()
    counting = Counting(model)
    with served(model, counting.optimizer) as live:
        with running_loop(counting):
            until(lambda: counting.steps > 3, "steps")
            for number in range(10):
                operation = live.model.write("a", fill=1000.0 * (number + 1))
                values, step = live.model.read("a", with_step=True)
                (value,) = numpy.unique(whole(values))
                assert value == 1000.0 * (number + 1) - (step - operation.step)
        assert counting.torn == []
        assert live.scope.step_count == counting.steps


def test_writes_to_a_generator_wait_for_its_own_backward() -> None:
    generator, critic = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    first = torch.optim.SGD(critic.parameters(), lr=1e-3)
    second = torch.optim.SGD(generator.parameters(), lr=1e-3)
    iterations = itertools.count(1)
    done = 0

    def iteration() -> None:
        nonlocal done
        fake = generator(torch.randn(8, 4)).tanh()
        first.zero_grad()
        critic(fake.detach()).mean().backward()
        first.step()
        second.zero_grad()
        (-critic(fake).mean()).backward()
        second.step()
        done = next(iterations)

    models: Any = {"generator": generator, "critic": critic}
    with (
        modscope_server.attach(models, optimizer=[first, second], writable=True) as scope,
        connect(scope.address, token=scope.token, timeout=TIMEOUT) as client,
    ):
        with running_loop(iteration):
            until(lambda: done > 3, "steps")
            for number in range(30):
                for name, path in (("generator", "weight"), ("critic", "0.weight")):
                    assert client.model(name).write(path, fill=0.01 * number).notes == ()
        # A training forward of a registered root begins an iteration: here the critic's, after each step.
        assert scope.step_count == 2 * done


def test_a_frozen_weight_stands_still_while_the_rest_goes_on() -> None:
    model = Counter(size=100)
    counting = Counting(model)
    with served(model, counting.optimizer) as live, running_loop(counting):
        until(lambda: counting.steps > 3, "steps")
        live.model.freeze("a")
        frozen, step = live.model.read("a", with_step=True)
        until(lambda: live.scope.step_count > step + 20, "20 more steps")
        later, later_step = live.model.read(["a", "b"], with_step=True)
        assert bits(later["a"]) == bits(frozen)
        assert (later["b"] == -later_step).all()
        live.model.unfreeze("a")
        until(lambda: (live.model.read("a") < frozen).all(), "it goes on")


def test_a_watch_sees_every_step_or_counts_what_it_lost() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def iteration() -> None:
        optimizer.zero_grad()
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()

    with served(model, optimizer) as live, running_loop(iteration):
        with live.model.watch("1", hooks=("forward", "backward"), queue=50_000) as events:
            seen = list(itertools.islice(events, 200))
        assert [event.seq for event in seen] == list(range(200))
        assert seen[-1].dropped == 0
        forwards = [event.step for event in seen if event.hook == "forward"]
        assert forwards == list(range(forwards[0], forwards[0] + len(forwards)))
        assert all(
            value.stats is not None and value.stats.count == 32 for event in seen for value in event.values
        )

        with live.model.watch("*", every=10) as events:
            assert {event.step % 10 for event in itertools.islice(events, 20)} == {0}

        before = live.scope.step_count
        with live.model.watch("1", queue=2, payload="tensor") as events:
            until(lambda: live.scope.step_count > before + 3_000, "training goes on while nobody reads")
            read = list(itertools.islice(events, 2_000))
        lost = read[-1].seq + 1 - len(read)
        assert 0 < lost <= read[-1].dropped
        assert [event.seq for event in read] == sorted({event.seq for event in read})
        until(lambda: all(hook.owner != "watch" for hook in live.model.hooks()), "no hooks are left")


class Stochastic(nn.Module):
    """Draws from every random state there is, and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 1.0 + 0.1 * random.random() + 0.1 * float(numpy.random.random())
        y: torch.Tensor = self.last(self.dropout(self.norm(self.first(x))) * scale)
        return y


class Losses(NamedTuple):
    """What a run gave."""

    training: list[float]
    """The loss of each step."""
    evaluation: list[float]
    """After each time over the data, the loss in eval mode, which depends on the running statistics."""


def losses(
    enough: Callable[[int], bool], attach: Callable[[nn.Module, torch.optim.Optimizer], Any] | None = None
) -> Losses:
    """Trains from a fixed seed until `enough` of the steps so far; `attach` is called before the first."""
    torch.manual_seed(3)
    random.seed(3)
    numpy.random.seed(3)
    model = Stochastic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, target = torch.randn(64, 6), torch.randint(3, (64,))
    loader = DataLoader(TensorDataset(x, target), batch_size=16, shuffle=True)
    if attach is not None:
        attach(model, optimizer)
    found = Losses([], [])
    while not enough(len(found.training)):
        model.train()
        for some, wanted in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(some), wanted)
            loss.backward()
            optimizer.step()
            found.training.append(loss.item())
        model.eval()
        with torch.no_grad():
            found.evaluation.append(nn.functional.cross_entropy(model(x), target).item())
    return found


class Looker(threading.Thread):
    """Reads, watches and runs the model that is being trained, again and again."""

    def __init__(self, scope: modscope_server.Scope) -> None:
        super().__init__(name="looker")
        self.scope = scope
        self.armed, self.leave = threading.Event(), threading.Event()
        self.rounds: list[int] = []
        self.start()

    def run(self) -> None:
        x = numpy.zeros((4, 6), "float32")
        kinds = ("forward_pre", "forward", "backward_pre", "backward")
        with connect(self.scope.address, token=self.scope.token, timeout=TIMEOUT) as client:
            model = client.model()
            with model.watch("*", hooks=kinds) as events:
                self.armed.set()
                while not self.leave.is_set():
                    for mode in ("eval", "train", "current"):
                        model.forward(x, mode=mode)
                    model.read(["first.weight", "norm.running_mean"])
                    model.parameters(stats=True)
                    model.state_dict()
                    next(iter(events))
                    self.rounds.append(self.scope.step_count)


def test_losses_are_the_same_attached_read_watched_and_run() -> None:
    scopes: list[modscope_server.Scope] = []
    lookers: list[Looker] = []

    def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        scopes.append(modscope_server.attach(model, optimizer=optimizer, writable=True))

    def attach_and_look(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        attach(model, optimizer)
        lookers.append(Looker(scopes[-1]))
        assert lookers[0].armed.wait(TIMEOUT)

    try:
        looked_at = losses(lambda done: done >= 60 and len(lookers[0].rounds) >= 5, attach_and_look)
        assert scopes[0].step_count == len(looked_at.training)
    finally:
        for looker in lookers:
            looker.leave.set()
        for looker in lookers:
            looker.join(TIMEOUT)
        scopes[0].close()
    assert not lookers[0].is_alive()

    bare = losses(lambda done: done >= len(looked_at.training))
    assert len(set(bare.training)) > len(bare.training) / 2
    assert looked_at == bare

    attached = losses(lambda done: done >= len(looked_at.training), attach)
    assert scopes[1].step_count == len(attached.training)
    scopes[1].close()
    assert attached == bare


def test_calls_from_the_training_thread_itself_never_deadlock() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        modscope_server.attach(model, optimizer=optimizer, writable=True) as scope,
        connect(scope.address, token=scope.token, timeout=5) as client,
    ):
        remote = client.model()
        x = torch.randn(4, 2)
        for step in range(3):
            assert bits(remote.read("0.weight")) == bits(model[0].weight)
            optimizer.zero_grad()
            loss = model(x).square().sum()
            assert bits(remote.read("0.weight")) == bits(model[0].weight)
            pending = remote.write("2.bias", numpy.full(1, step, "float32"))
            assert pending.notes, "the forward before this line has not been back-propagated"
            loss.backward()
            assert bits(remote.read("0.weight", what="grad")) == bits(model[0].weight.grad)
            optimizer.step()
            assert remote.write("2.bias", fill=float(step)).notes == ()
            with remote.watch("1") as events:
                remote_output = remote.forward(x.numpy())
                with torch.no_grad():
                    assert bits(remote_output) == bits(model(x))
                assert next(iter(events)).path == "1"
            _, at = remote.read("2.bias", with_step=True)
            assert at == step + 1 == scope.step_count

    seen: list[tuple[str, tuple[int, ...], bytes]] = []
    with (
        modscope_server.attach(model, optimizer=optimizer, writable=True) as scope,
        connect(scope.address, token=scope.token, timeout=5) as client,
    ):
        handle = model[1].register_forward_hook(lambda *_: seen.append(bits(client.model().read("0.weight"))))
        model(x).sum().backward()
        handle.remove()
        assert seen == [bits(model[0].weight)], "a call from inside a forward"


@pytest.mark.parametrize("address", [None, "127.0.0.1:0"])
def test_two_servers_in_one_process(address: str | None) -> None:
    with (
        served(nn.Linear(1, 2), address=address) as one,
        served(nn.Linear(3, 4), address=address) as other,
    ):
        assert one.scope.address != other.scope.address
        assert one.model.parameters()[0].shape == (2, 1)
        assert other.model.parameters()[0].shape == (4, 3)
