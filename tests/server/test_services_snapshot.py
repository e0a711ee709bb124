"""SnapshotService: saved at one step, listed, put back as an operation, dropped; refusals change nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import modscope_server
from modscope.v1.operation_pb2 import ChangeOptions
from modscope_server import Limits
from modscope_server.inspection import snapshot_files
from tests.server.rpc import Rpc, admitted, refused, serving, training_loop, until


def trained() -> tuple[Any, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()


def test_a_snapshot_is_told_in_full() -> None:
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    with serving(model, optimizer, extras={"scheduler": scheduler, "odd": object()}) as rpc:
        step(model, optimizer)
        saved = rpc.SaveSnapshot(name="before-lr.1_a").snapshot
        assert (saved.name, saved.model, saved.step, saved.directory) == ("before-lr.1_a", "model", 1, "")
        assert list(saved.parts) == ["model", "optimizer", "random", "scheduler"]
        assert saved.who.startswith("operator ")
        assert ["odd is left out" in note for note in saved.notes] == [True]
        held = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
        held += [value for state in optimizer.state.values() for value in state.values()]
        random_bytes = torch.get_rng_state().nbytes
        assert saved.bytes == sum(tensor.nbytes for tensor in held) + random_bytes
        assert list(rpc.ListSnapshots().snapshots) == [saved]
        assert rpc.DropSnapshot(name="before-lr.1_a").snapshot == saved
        assert not rpc.ListSnapshots().snapshots


def test_a_restoration_is_an_operation_that_can_be_undone() -> None:
    model, optimizer = trained()
    with serving(model, optimizer) as rpc:
        rpc.SaveSnapshot(name="a")
        then = {name: value.clone() for name, value in model.state_dict().items()}
        for _ in range(3):
            step(model, optimizer)
        later = {name: value.clone() for name, value in model.state_dict().items()}
        dry = rpc.RestoreSnapshot(name="a", options=ChangeOptions(dry_run=True)).operation
        assert dry.outcome == "dry_run"
        assert all(torch.equal(value, later[name]) for name, value in model.state_dict().items())
        options = ChangeOptions(request_id="once")
        done = rpc.RestoreSnapshot(name="a", options=options).operation
        assert (done.kind, done.outcome, done.not_undoable) == ("restore_snapshot", "applied", "")
        assert list(done.paths) == [name for name in done.paths if name in then] and len(done.paths) == 9
        assert done.before["0.weight"] != done.after["0.weight"]
        assert all(torch.equal(value, then[name]) for name, value in model.state_dict().items())
        assert rpc.GetModel().model.step == 0
        step(model, optimizer)
        assert rpc.RestoreSnapshot(name="a", options=options).operation.id == done.id
        assert rpc.GetModel().model.step == 1
        rpc.DropSnapshot(name="a")
        assert rpc.RestoreSnapshot(name="a", options=options).operation.id == done.id
        assert rpc.Undo(id=done.id).operation.outcome == "applied"
        assert all(torch.equal(value, later[name]) for name, value in model.state_dict().items())
        assert rpc.GetModel().model.step == 3


def test_expected_digests_are_preconditions_of_a_restoration() -> None:
    model, optimizer = trained()
    with serving(model, optimizer) as rpc:
        rpc.SaveSnapshot(name="a")
        step(model, optimizer)
        value = model[0].weight.detach().clone()
        options = ChangeOptions(expected={"0.weight": "sha256:0"})
        assert refused(lambda: rpc.RestoreSnapshot(name="a", options=options)).reason == "STALE_DIGEST"
        assert torch.equal(model[0].weight, value)


def test_directories_are_written_listed_restored_from_and_deleted(tmp_path: Path) -> None:
    model, optimizer = trained()
    with serving(model, optimizer) as rpc:
        saved = rpc.SaveSnapshot(name="a", directory=str(tmp_path / "new")).snapshot
        assert saved.directory == str(tmp_path / "new")
        assert list(rpc.ListSnapshots().snapshots) == [saved]
    with serving(model, optimizer) as rpc:
        assert not rpc.ListSnapshots().snapshots
        assert refused(lambda: rpc.RestoreSnapshot(name="a")).reason == "UNKNOWN_SNAPSHOT"
        (listed,) = rpc.ListSnapshots(directory=str(tmp_path / "new")).snapshots
        assert listed == saved
        then = model[0].weight.detach().clone()
        step(model, optimizer)
        rpc.RestoreSnapshot(name="a")
        assert torch.equal(model[0].weight, then)
        assert rpc.DropSnapshot(name="a").snapshot == saved
        assert os.listdir(tmp_path / "new") == []
        assert refused(lambda: rpc.DropSnapshot(name="a")).reason == "UNKNOWN_SNAPSHOT"


def test_a_damaged_directory_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    with serving(model, optimizer) as rpc:
        rpc.SaveSnapshot(name="a", directory=str(tmp_path))
        os.truncate(tmp_path / "a" / "tensors.safetensors", 50)
        value = model[0].weight.detach().clone()
        step(model, optimizer)
        refusal = refused(lambda: rpc.RestoreSnapshot(name="a"))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "SNAPSHOT_MISMATCH")
        assert "damaged" in refusal.message
        assert not torch.equal(model[0].weight, value)
        assert not rpc.ListOperations().operations


def test_a_name_that_is_taken_needs_replace(tmp_path: Path) -> None:
    model, optimizer = trained()
    with serving(model, optimizer) as rpc:
        for directory in ("", str(tmp_path)):
            rpc.SaveSnapshot(name="a", directory=directory)
            step(model, optimizer)
            refusal = refused(lambda directory=directory: rpc.SaveSnapshot(name="a", directory=directory))  # type: ignore[misc]
            assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "SNAPSHOT_EXISTS")
            saved = rpc.SaveSnapshot(name="a", directory=directory, replace=True).snapshot
            assert saved in rpc.ListSnapshots().snapshots
        assert len(rpc.ListSnapshots().snapshots) == 2


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "\u00e9", "x" * 101, "a\n"])
def test_names_are_restricted(name: str, tmp_path: Path) -> None:
    model, optimizer = trained()
    with serving(model, optimizer) as rpc:
        for directory in ("", str(tmp_path)):
            refusal = refused(lambda directory=directory: rpc.SaveSnapshot(name=name, directory=directory))  # type: ignore[misc]
            assert (refusal.reason, refusal.fields) == ("BAD_REQUEST", ["name"])
        refusal = refused(lambda: rpc.RestoreSnapshot(name=name, directory=str(tmp_path)))
        assert refusal.reason == "BAD_REQUEST"
    assert os.listdir(tmp_path) == []


def test_what_is_not_there_is_refused() -> None:
    model, optimizer = trained()
    with serving(model, optimizer) as rpc:
        rpc.SaveSnapshot(name="a")
        for call in (rpc.RestoreSnapshot, rpc.DropSnapshot):
            refusal = refused(lambda call=call: call(name="b"))  # type: ignore[misc]
            assert (refusal.code, refusal.reason) == ("NOT_FOUND", "UNKNOWN_SNAPSHOT")
            assert "known are: a" in refusal.hint
        for call in (rpc.SaveSnapshot, rpc.RestoreSnapshot, rpc.DropSnapshot, rpc.ListSnapshots):
            assert refused(lambda call=call: call(model="nobody")).reason == "UNKNOWN_MODEL"  # type: ignore[misc]


def test_another_model_is_refused_with_what_differs() -> None:
    model, optimizer = trained()
    with serving(model, optimizer) as rpc:
        rpc.SaveSnapshot(name="a")
        model[2] = nn.Linear(8, 2)
        refusal = refused(lambda: rpc.RestoreSnapshot(name="a"))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "SNAPSHOT_MISMATCH")
        assert "2.weight was float32 [1, 8] and is float32 [2, 8]" in refusal.message
        assert not rpc.ListOperations().operations


def test_memory_is_bounded_and_given_back(tmp_path: Path) -> None:
    model, optimizer = trained()
    with serving(model, optimizer) as rpc:
        size = rpc.SaveSnapshot(name="measure").snapshot.bytes
    with serving(model, optimizer, limits=Limits(snapshot_bytes=2 * size + 10)) as rpc:
        rpc.SaveSnapshot(name="a")
        for round in range(3):
            # What a directory takes is taken for as long as it is written or read.
            rpc.SaveSnapshot(name=f"d{round}", directory=str(tmp_path))
            rpc.RestoreSnapshot(name=f"d{round}")
        rpc.SaveSnapshot(name="b")
        for directory in ("", str(tmp_path)):
            refusal = refused(lambda directory=directory: rpc.SaveSnapshot(name="c", directory=directory))  # type: ignore[misc]
            assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "LIMIT")
            assert f"{size:,} bytes" in refusal.message
        assert not admitted(lambda: rpc.RestoreSnapshot(name="d0"))
        rpc.DropSnapshot(name="a")
        rpc.SaveSnapshot(name="b", replace=True)
        rpc.SaveSnapshot(name="c")
    assert sorted(os.listdir(tmp_path)) == ["d0", "d1", "d2"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, os.strerror(28))

    model, optimizer = trained()
    monkeypatch.setattr(snapshot_files, "save_file", full)
    with serving(model, optimizer) as rpc:
        refusal = refused(lambda: rpc.SaveSnapshot(name="a", directory=str(tmp_path)))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "LIMIT")
        assert "disk" in refusal.message
        assert not rpc.ListSnapshots().snapshots
        assert os.listdir(tmp_path) == []


def test_a_name_is_taken_while_it_is_being_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> None:
        writing.set()
        assert go_on.wait(30)
        save_file(*args, **kwargs)

    model, optimizer = trained()
    monkeypatch.setattr(snapshot_files, "save_file", slow)
    with serving(model, optimizer) as rpc:
        first = threading.Thread(target=lambda: rpc.SaveSnapshot(name="a", directory=str(tmp_path)))
        first.start()
        assert writing.wait(30)
        # The training thread is free meanwhile.
        step(model, optimizer)
        refusal = refused(lambda: rpc.SaveSnapshot(name="a", directory=str(tmp_path), replace=True))
        assert refusal.reason == "SNAPSHOT_EXISTS"
        assert "just being saved" in refusal.message
        go_on.set()
        first.join(30)
        assert [one.name for one in rpc.ListSnapshots().snapshots] == ["a"]


class Slow(torch.optim.Optimizer):
    """Writes the number of its step into every element, in pieces, and into its state."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.number = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.number += 1
        for parameter in self.param_groups[0]["params"]:
            for row in parameter:
                row.fill_(self.number)
            state = self.state[parameter].setdefault("seen", torch.zeros_like(parameter))
            for row in state:
                row.fill_(self.number)


def test_a_snapshot_of_a_running_loop_is_of_one_step(tmp_path: Path) -> None:
    model = nn.ModuleList([nn.Linear(64, 64, bias=False) for _ in range(4)])
    root = nn.Sequential(*model)
    optimizer = Slow(root.parameters())
    x = torch.randn(2, 64)

    def iteration() -> None:
        root(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with serving(root, optimizer) as rpc, training_loop(iteration):
        until(lambda: rpc.GetModel().model.step > 3)
        for round in range(20):
            saved = rpc.SaveSnapshot(name=f"s{round}", directory=str(tmp_path)).snapshot
            tensors = load_file(tmp_path / f"s{round}" / "tensors.safetensors")
            values = {
                float(element)
                for name, tensor in tensors.items()
                if name != "random/torch" and not name.endswith("/grad")
                for element in tensor.unique()
            }
            assert values == {float(saved.step)}


def test_a_place_that_the_loop_does_not_come_to_any_more_is_named() -> None:
    model, optimizer = trained()
    with (
        modscope_server.attach(model, optimizer, writable=True) as scope,
        Rpc(scope.address, scope.token) as rpc,
    ):
        marks = threading.Event()
        marks.set()

        def iteration() -> None:
            step(model, optimizer)
            if marks.is_set():
                scope.step()

        with training_loop(iteration):
            until(lambda: scope.step_count > 3)
            rpc.SaveSnapshot(name="a")
            marks.clear()
            count = scope.step_count
            until(lambda: scope.step_count > count + 3)
            refusal = refused(lambda: rpc.RestoreSnapshot(name="a", timeout=1.0))
            assert (refusal.code, refusal.reason) == ("DEADLINE_EXCEEDED", "NO_SAFE_POINT")
            assert "taken in scope.step" in refusal.message
            marks.set()
            done = rpc.RestoreSnapshot(name="a").operation
    assert not [note for note in done.notes if "was taken" in note]


def test_who_may_do_what() -> None:
    model, optimizer = trained()
    with serving(model, optimizer, writable=False) as rpc:
        for call in (rpc.SaveSnapshot, rpc.RestoreSnapshot, rpc.DropSnapshot):
            refusal = refused(lambda call=call: call(name="a"))  # type: ignore[misc]
            assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "READ_ONLY_SERVER")
        assert not rpc.ListSnapshots().snapshots


def test_several_models_are_saved_and_restored_as_one_run() -> None:
    models: dict[str, nn.Module] = {"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1)}
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models.values()]
    with serving(models, optimizers) as rpc:
        saved = rpc.SaveSnapshot(model="critic", name="a").snapshot
        assert list(saved.parts) == ["generator", "critic", "optimizer", "random"]
        values = [parameter.detach().clone() for model in models.values() for parameter in model.parameters()]
        with torch.no_grad():
            for model in models.values():
                for parameter in model.parameters():
                    parameter.zero_()
        done = rpc.RestoreSnapshot(model="critic", name="a").operation
        assert list(done.paths) == ["weight", "bias", "generator:weight", "generator:bias"]
        live = [parameter for model in models.values() for parameter in model.parameters()]
        assert all(map(torch.equal, live, values))
        rpc.Undo(model="critic", id=done.id)
        assert not any(parameter.any() for parameter in live)
