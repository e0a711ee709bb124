"""Frozen running statistics stay bit for bit, though the loop calls model.train() every epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from modscope_server.errors import NoMatch
from modscope_server.inspection.freezing import plan_freeze, plan_unfreeze
from modscope_server.inspection.norm_stats import NormHolds
from modscope_server.inspection.optimizers import Groups
from tests.server.rpc import refused, serving, training_loop, until


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.BatchNorm1d(6, affine=False, momentum=None),
        nn.Linear(6, 2),
    )


class Epochs:
    """A loop of epochs of three steps and an evaluation, each beginning as such loops do."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
        self.steps = 0
        self.before_step = lambda step: None

    def step(self) -> None:
        if self.steps % 3 == 0:
            self.model.eval()
            with torch.no_grad():
                self.model(self.inputs(-self.steps - 1))
            self.model.train()
        self.before_step(self.steps)
        self.optimizer.zero_grad()
        self.model(self.inputs(self.steps)).square().mean().backward()
        self.optimizer.step()
        self.steps += 1

    def run_to(self, steps: int) -> None:
        while self.steps < steps:
            self.step()

    def inputs(self, number: int) -> torch.Tensor:
        return torch.randn(8, 4, generator=torch.Generator().manual_seed(1000 + number))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {key for key in one if not torch.equal(one[key], other[key])}


STATISTICS = {
    f"{place}.{name}" for place in (1, 3) for name in ("running_mean", "running_var", "num_batches_tracked")
}


@pytest.mark.parametrize("glob", ["1", "1.*", "1.weight", "3", "{1,3}*"])
def test_held_in_a_loop_as_by_hand(glob: str) -> None:
    """The oracle puts the layers to eval before each of its steps."""
    layers = {"3": (3,), "{1,3}*": (1, 3)}.get(glob, (1,))
    model = network()
    run = Epochs(model)
    with serving(model, run.optimizer) as rpc:
        run.run_to(4)
        frozen = state(model)
        twin = copy.deepcopy(model)
        operation = rpc.Freeze(glob=glob, norm_stats=True, force=True).operation
        told = ", ".join(map(str, layers))
        assert f"running statistics held: {told}" in operation.notes
        run.run_to(13)
    held = {key for key in STATISTICS if int(key[0]) in layers}
    assert differing(frozen, state(model)) & STATISTICS == STATISTICS - held
    assert "0.weight" in differing(frozen, state(model))
    assert not differing(frozen, state(model)) & set(operation.paths)

    other = Epochs(twin)
    other.optimizer.load_state_dict(copy.deepcopy(optimizer_at(4)))
    other.steps = 4
    for path in operation.paths:
        twin.get_parameter(path).requires_grad_(False).grad = None

    def before_step(step: int) -> None:
        for place in layers:
            twin[place].eval()

    other.before_step = before_step
    other.run_to(13)
    assert differing(state(model), state(twin)) == set()


def test_a_freeze_of_everything_holds_every_layer() -> None:
    model = network()
    run = Epochs(model)
    with serving(model, run.optimizer) as rpc:
        run.run_to(4)
        frozen = state(model)
        operation = rpc.Freeze(glob="*", norm_stats=True, force=True).operation
        assert "running statistics held: 1, 3" in operation.notes
        model.train()
        model(run.inputs(4))
        assert differing(frozen, state(model)) == set()


def optimizer_at(steps: int) -> dict[str, Any]:
    run = Epochs(network())
    run.run_to(steps)
    return run.optimizer.state_dict()


def test_held_in_a_running_loop_until_it_is_thawed() -> None:
    model = network()
    run = Epochs(model)
    with serving(model, run.optimizer) as rpc, training_loop(run.step):
        until(lambda: run.steps >= 4)
        rpc.Freeze(glob="1", norm_stats=True)
        first = {key: value for key, value in state(model).items() if key.startswith("1.")}
        at = run.steps
        until(lambda: run.steps >= at + 10)
        assert differing(first, state(model)) == set()
        operation = rpc.Unfreeze(glob="1").operation
        assert list(operation.notes) == ["running statistics move again: 1"]
        at = run.steps
        until(lambda: run.steps >= at + 10)
        assert differing(first, state(model)) == set(first)


def test_an_undo_lets_go() -> None:
    model = network()
    run = Epochs(model)
    with serving(model, run.optimizer) as rpc:
        run.run_to(2)
        freeze = rpc.Freeze(glob="1", norm_stats=True).operation
        assert not model[1].training
        run.run_to(5)
        rpc.Undo(id=freeze.id)
        assert model[1].training
        assert model[1].weight.requires_grad
        first = state(model)
        run.run_to(8)
        assert {"1.running_mean", "1.num_batches_tracked"} <= differing(first, state(model))
        freeze = rpc.Freeze(glob="1", norm_stats=True).operation
        thaw = rpc.Unfreeze(glob="1").operation
        rpc.Undo(id=thaw.id)
        assert not model[1].training
        first = state(model)
        run.run_to(11)
        assert not {"1.running_mean", "1.weight"} & differing(first, state(model))


def test_without_the_flag_the_reply_says_what_still_moves() -> None:
    model = network()
    run = Epochs(model)
    with serving(model, run.optimizer) as rpc:
        (note,) = rpc.Freeze(glob="1").operation.notes
        assert note == "running statistics still move: 1; to stop that, modscope freeze --norm-stats 1"
        (note,) = rpc.Freeze(glob="{0,1,2,3}*").operation.notes[1:]
        assert note.endswith("modscope freeze --norm-stats '{1,3}'")
        first = state(model)
        run.run_to(2)
        assert differing(first, state(model)) & STATISTICS
        rpc.Freeze(glob="{1,3}", norm_stats=True)
        notes = rpc.Freeze(glob="{0,1,2,3}*").operation.notes
        assert not any("still move" in note for note in notes)
        first = state(model)
        run.run_to(5)
        assert not differing(first, state(model)) & STATISTICS
        (note,) = rpc.Freeze(glob="0", norm_stats=True).operation.notes[1:]
        assert note == "none of the modules has running statistics"


def test_a_layer_that_the_loop_keeps_in_eval_is_no_news_and_stays_so() -> None:
    model = network()
    model[1].eval()
    holds = NormHolds()
    notes = plan_freeze(model, "1", holds=holds).apply()
    assert notes == ()
    plan_freeze(model, "1", norm_stats=True, holds=holds).apply()
    plan_unfreeze(model, "1", holds=holds).apply()
    assert not model[1].training
    plan_freeze(model, "1", norm_stats=True, holds=holds).apply()
    model.train()
    holds.enforce()
    assert not model[1].training
    model.eval()
    plan_unfreeze(model, "1", holds=holds).apply()
    assert not model[1].training
    model.train()
    assert model[1].training


def test_a_rollback_lets_go_and_takes_hold_again() -> None:
    model = network()
    holds = NormHolds()
    change = plan_freeze(model, "1", norm_stats=True, holds=holds)
    change.apply()
    change.memento.roll_back()
    assert model[1].training
    assert model[1] not in holds
    change.apply()
    thaw = plan_unfreeze(model, "1", holds=holds)
    thaw.apply()
    again = thaw.memento.again()
    thaw.memento.roll_back()
    assert model[1] in holds
    assert not model[1].training
    again.restore()
    assert model[1] not in holds
    assert model[1].training


KINDS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "batch": (lambda: nn.BatchNorm2d(2), True),
    "lazy": (nn.LazyBatchNorm2d, True),
    "sync": (lambda: nn.SyncBatchNorm(2), True),
    "instance with": (lambda: nn.InstanceNorm2d(2, affine=True, track_running_stats=True), True),
    "instance": (lambda: nn.InstanceNorm2d(2, affine=True), False),
    "batch without": (lambda: nn.BatchNorm2d(2, track_running_stats=False), False),
    "layer": (lambda: nn.LayerNorm(2), False),
    "group": (lambda: nn.GroupNorm(1, 2), False),
}


@pytest.mark.parametrize("name", KINDS)
def test_which_layers_have_running_statistics(name: str) -> None:
    make, moves = KINDS[name]
    model = nn.Sequential(nn.Linear(2, 2), make())
    holds = NormHolds()
    plan_freeze(model, "1", norm_stats=True, holds=holds).apply()
    assert (model[1] in holds) is moves
    assert model[1].training is not moves


def test_types_and_shared_layers() -> None:
    shared = nn.BatchNorm1d(2)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.Linear(2, 2)), nn.Linear(2, 2))
    holds = NormHolds()
    change = plan_freeze(model, "*", "BatchNorm1d", norm_stats=True, holds=holds)
    assert change.paths == ("0.weight", "0.bias")
    assert change.apply() == ("running statistics held: 0",)
    with pytest.raises(NoMatch, match="no parameter matches '\\*' in a module of type 'Conv1d'"):
        plan_freeze(model, "*", "Conv1d", norm_stats=True, holds=holds)
    plan_unfreeze(model, "1", holds=holds).apply()
    assert shared not in holds
    lone = nn.BatchNorm1d(2)
    assert plan_freeze(lone, "", norm_stats=True, holds=holds, force=True).apply() == (
        "running statistics held: (root)",
    )
    assert not lone.training
    plan_unfreeze(lone, "", holds=holds).apply()
    assert lone.training


def test_a_glob_that_selects_neither() -> None:
    model = network()
    with serving(model, SGD(model.parameters(), lr=0.1)) as rpc:
        assert refused(lambda: rpc.Freeze(glob="3")).reason == "NO_MATCH"
        assert refused(lambda: rpc.Freeze(glob="2", norm_stats=True)).reason == "NO_MATCH"
        assert refused(lambda: rpc.Unfreeze(glob="3")).reason == "NO_MATCH"
        rpc.Freeze(glob="3", norm_stats=True)
        rpc.Unfreeze(glob="3")


def test_where_the_roots_hooks_do_not_fire_the_reply_says_so() -> None:
    """model.forward(x) runs no hooks, so nothing of ours runs between model.train() and it."""
    model = network()
    run = Epochs(model)
    model_call = run.model
    run.model = Called(model_call)
    with serving(model, run.optimizer) as rpc:
        run.run_to(4)
        notes = rpc.Freeze(glob="1", norm_stats=True).operation.notes
        assert any(
            "is put back after an optimizer step only: the hooks of the model's root" in n for n in notes
        )
        first = state(model)
        run.run_to(6)
        assert not differing(first, state(model)) & {"1.running_mean"}
        run.run_to(9)
        assert not model[1].training


class Called(nn.Module):
    """Calls the forward of another module by name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner.forward(x)


def test_no_chore_is_left_when_nothing_is_held() -> None:
    class Recorder:
        notes = ()

        def __init__(self) -> None:
            self.chores: list[Any] = []

        def add_chore(self, chore: Any) -> None:
            self.chores.append(chore)

        def remove_chore(self, chore: Any) -> None:
            self.chores.remove(chore)

    model, chores = network(), Recorder()
    holds = NormHolds(chores)
    groups = Groups.of(())
    plan_freeze(model, "1", norm_stats=True, holds=holds, groups=groups).apply()
    plan_freeze(model, "3", norm_stats=True, holds=holds, groups=groups).apply()
    assert len(chores.chores) == 1
    plan_unfreeze(model, "1", holds=holds).apply()
    assert len(chores.chores) == 1
    plan_unfreeze(model, "3", holds=holds).apply()
    assert chores.chores == []
