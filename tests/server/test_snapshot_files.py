"""A snapshot in a directory: whole or not there, exact, and refused where it was tampered with."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from modscope_server.errors import (
    BadRequest,
    LimitExceeded,
    SnapshotExists,
    SnapshotMismatch,
    UnknownSnapshot,
)
from modscope_server.inspection import snapshot_files
from modscope_server.inspection.snapshot import Image
from modscope_server.inspection.snapshot_files import (
    list_snapshots,
    read_image,
    read_record,
    remove_snapshot,
    write_snapshot,
)
from modscope_server.inspection.snapshot_records import SnapshotRecord
from tests.plain_models import Dtypes, Tied
from tests.server.snapshot_support import image_of, network, restored, run_of, state_of, train


def record(image: Image, name: str = "one", **fields: Any) -> SnapshotRecord:
    told: dict[str, Any] = {
        "name": name,
        "model": "model",
        "step": image.step,
        "time": time.time(),
        "nbytes": image.nbytes,
        "parts": image.parts,
        "who": "operator ipv4:127.0.0.1:1",
        "notes": image.notes,
    }
    return SnapshotRecord(**{**told, **fields})


def write(parent: Path, image: Image, name: str = "one", *, replacing: bool = False, **fields: Any) -> None:
    write_snapshot(parent, record(image, name, **fields), image, replacing=replacing)


@pytest.mark.parametrize("make", [Dtypes, Tied, network])
def test_what_is_read_is_what_was_written(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    run = run_of(model, [optimizer])
    if isinstance(model, nn.Sequential):
        train(model, optimizer, 2)
    image, then = image_of(run), state_of(run)
    write(tmp_path / "deep" / "down", image)
    read = read_image(tmp_path / "deep" / "down" / "one")
    assert read.run == image.run
    assert read.table.rows == image.table.rows
    assert all(map(torch.equal, read.table.blocks, image.table.blocks))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    restored(read, run)
    assert state_of(run) == then


def test_the_tensors_are_a_plain_safetensors_file(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 2)
    write(tmp_path, image_of(run_of(model, [optimizer])))
    tensors = load_file(tmp_path / "one" / "tensors.safetensors")
    assert torch.equal(tensors["model/0.weight"], model[0].weight)
    assert torch.equal(tensors["optimizer/0/0.weight/exp_avg"], optimizer.state[model[0].weight]["exp_avg"])
    assert torch.equal(tensors["model/0.weight/grad"], model[0].weight.grad)
    assert sorted(os.listdir(tmp_path / "one")) == ["snapshot.json", "tensors.safetensors"]


def test_listed_oldest_first_and_what_else_lies_there_is_passed_over(tmp_path: Path) -> None:
    image = image_of(run_of(network()))
    write(tmp_path, image, "young", time=2.0)
    write(tmp_path, image, "old", time=1.0)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "snapshot.json").write_text('{"format": "other"}')
    found = list_snapshots(tmp_path)
    assert [one.name for one in found] == ["old", "young"]
    assert found[0] == record(image, "old", time=1.0, directory=str(tmp_path))
    assert read_record(tmp_path / "old") == found[0]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of a tensor": lambda path: _flip(path / "tensors.safetensors"),
    "tensors cut off": lambda path: os.truncate(path / "tensors.safetensors", 100),
    "tensors gone": lambda path: os.unlink(path / "tensors.safetensors"),
    "a number": lambda path: _edit(path / "snapshot.json", lambda w: w["content"]["run"].update(step=7)),
    "a part": lambda path: _edit(path / "snapshot.json", lambda w: w["content"].pop("rows")),
    "no content": lambda path: _edit(path / "snapshot.json", lambda w: w.pop("content")),
    "a later version": lambda path: _edit(path / "snapshot.json", lambda w: w.update(version=2)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_refused(damage: str, tmp_path: Path) -> None:
    write(tmp_path, image_of(run_of(network())))
    DAMAGES[damage](tmp_path / "one")
    with pytest.raises(SnapshotMismatch) as refusal:
        read_image(tmp_path / "one")
    assert str(tmp_path / "one") in refusal.value.message
    assert ("version 2" if "version" in damage else "damaged") in refusal.value.message


def test_what_is_no_snapshot_is_neither_read_nor_removed_nor_replaced(tmp_path: Path) -> None:
    image = image_of(run_of(network()))
    foreign = tmp_path / "one"
    foreign.mkdir()
    (foreign / "snapshot.json").write_text("{not json")
    (foreign / "precious").write_text("x")
    for call in (read_image, read_record, remove_snapshot):
        with pytest.raises(UnknownSnapshot, match="is no snapshot"):
            call(foreign)
    with pytest.raises(SnapshotExists, match="is no snapshot"):
        write(tmp_path, image, replacing=True)
    with pytest.raises(UnknownSnapshot, match="there is nothing"):
        read_image(tmp_path / "none")
    write(tmp_path, image, "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(UnknownSnapshot):
        remove_snapshot(tmp_path / "link")
    assert (foreign / "precious").exists()
    assert (tmp_path / "real" / "snapshot.json").exists()


def test_a_directory_with_other_files_in_it_is_left_as_it_is(tmp_path: Path) -> None:
    image = image_of(run_of(network()))
    write(tmp_path, image)
    (tmp_path / "one" / "notes.txt").write_text("mine")
    with pytest.raises(BadRequest, match=r"notes\.txt"):
        remove_snapshot(tmp_path / "one")
    with pytest.raises(SnapshotExists, match=r"notes\.txt"):
        write(tmp_path, image, replacing=True)
    assert len(os.listdir(tmp_path / "one")) == 3
    (tmp_path / "one" / "notes.txt").unlink()
    remove_snapshot(tmp_path / "one")
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_taken_is_replaced_on_demand_alone(tmp_path: Path) -> None:
    model = network()
    run = run_of(model)
    write(tmp_path, image_of(run))
    with torch.no_grad():
        model[0].weight.fill_(3)
    with pytest.raises(SnapshotExists):
        write(tmp_path, image_of(run))
    write(tmp_path, image_of(run), replacing=True)
    tensors = load_file(tmp_path / "one" / "tensors.safetensors")
    assert torch.equal(tensors["model/0.weight"], model[0].weight)
    assert os.listdir(tmp_path) == ["one"]


def _full(*args: object, **kwargs: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _denied(*args: object, **kwargs: object) -> NoReturn:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("step", ["save_file", "_settle", "_write_json", "_rename"])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_write_that_fails_leaves_nothing_and_what_was_there(
    step: str, replacing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(run_of(network()))
    if replacing:
        write(tmp_path, image, who="first")
    for fault, error in ((_full, LimitExceeded), (_denied, BadRequest)):
        with monkeypatch.context() as patch:
            patch.setattr(snapshot_files, step, fault)
            with pytest.raises(error):
                write(tmp_path, image, replacing=replacing)
        assert os.listdir(tmp_path) == (["one"] if replacing else [])
    if replacing:
        assert read_record(tmp_path / "one").who == "first"
        read_image(tmp_path / "one")


def test_a_replacement_that_cannot_take_its_place_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(run_of(network()))
    write(tmp_path, image, who="first")
    rename, calls = os.rename, []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            _denied()
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(BadRequest):
        write(tmp_path, image, replacing=True, who="second")
    assert os.listdir(tmp_path) == ["one"]
    assert read_record(tmp_path / "one").who == "first"


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    image = image_of(run_of(network()))
    for parent in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadRequest) as refusal:
            write(parent, image)
        assert refusal.value.field == "directory"
    with pytest.raises(BadRequest):
        list_snapshots(tmp_path / "none")
