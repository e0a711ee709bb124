"""ops and undo; --expected, --dry-run and --request-id of the verbs that change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.client.cli.conftest import Live, Modscope
from tests.client.golden import timeless
from tests.client.served_net import digest_of

STALE = "sha256:" + "0" * 64


def test_nothing_was_changed(live: Live, modscope: Modscope) -> None:
    outcome = modscope("ops")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "nothing was changed\n")
    assert modscope("ops", "-o", "json").json == []


def test_the_ledger(live: Live, modscope: Modscope, golden: Callable[[str, str], None]) -> None:
    live.step(3)
    before = digest_of(live.model.scale)
    assert modscope("set", "scale", "--fill", "2", "--request-id", "mine").code == 0
    assert modscope("freeze", "body.2", "--norm-stats").code == 0
    outcome = modscope("undo", "op-1")
    assert (outcome.code, live.model.scale.tolist()) == (0, [1.0] * 4)
    assert outcome.lines == ["put back 1 tensor at step 3 (op-3), undoing op-1", "  scale"]
    golden("ops", timeless(modscope("ops").out))
    golden("ops_op-1", timeless(modscope("ops", "op-1").out))
    told = modscope("ops", "-o", "json").json
    assert [operation["kind"] for operation in told] == ["write", "freeze", "undo"]
    assert told[0]["before"] == told[2]["after"] == {"scale": before} and told[0]["undone"]
    assert (told[0]["request_id"], told[2]["undoes"], told[2]["outcome"]) == ("mine", "op-1", "applied")
    assert modscope("ops", "op-1", "-o", "json").json == told[0]
    assert modscope("ops", "-o", "name").lines == ["op-1", "op-2", "op-3"]


def test_what_cannot_be_undone(live: Live, modscope: Modscope) -> None:
    assert modscope("undo", "op-1").code == modscope("ops", "op-1").code == 3
    modscope("set", "scale", "--fill", "2")
    modscope("set", "scale", "--fill", "3")
    outcome = modscope("undo", "op-1", "-o", "json")
    assert outcome.code == 5
    error = json.loads(outcome.err)
    assert error["reason"] == "NOT_UNDOABLE" and "op-2" in error["message"] + error["hint"]
    assert live.model.scale.tolist() == [3.0] * 4
    plan = modscope("undo", "op-2", "--dry-run")
    assert plan.lines[0] == "undo would touch 1 tensor; dry run, nothing was changed"
    assert live.model.scale.tolist() == [3.0] * 4
    assert modscope("undo", "op-2").code == modscope("undo", "op-1").code == 0
    assert live.model.scale.tolist() == [1.0] * 4


@pytest.fixture
def state(tmp_path: Path) -> str:
    file = str(tmp_path / "part.safetensors")
    save_file({"scale": torch.full((4,), 5.0)}, file)
    return file


def test_every_verb_takes_conditions(live: Live, modscope: Modscope, state: str) -> None:
    modscope("set", "body.2.bias", "--fill", "0")
    before = {key: tensor.clone() for key, tensor in live.model.state_dict().items()}
    refused: tuple[tuple[str, ...], ...] = (
        ("set", "scale", "--fill", "2", "--expected", STALE),
        ("freeze", "scale", "--expected", f"scale={STALE}"),
        ("unfreeze", "scale", "--expected", f"scale={STALE}"),
        ("reinit", "body.0", "--expected", f"scale={STALE}"),
        ("state", "load", state, "--no-strict", "--expected", f"scale={STALE}"),
        ("optim", "set", "lr=1", "--expected", f"scale={STALE}"),
        ("undo", "op-1", "--expected", f"scale={STALE}"),
    )
    for words in refused:
        outcome = modscope(*words, "-o", "json")
        assert outcome.code == 5, words
        assert json.loads(outcome.err)["reason"] == "STALE_DIGEST"
    digest = modscope("show", "scale", "-o", "json").json["digest"]
    planned: tuple[tuple[str, ...], ...] = (
        ("set", "scale", "--fill", "2", "--expected", digest, "--dry-run"),
        ("freeze", "scale", "--expected", f"scale={digest}", "--dry-run"),
        ("state", "load", state, "--no-strict", "--dry-run"),
        ("reinit", "body.0", "--dry-run"),
    )
    for words in planned:
        assert "dry run, nothing was changed" in modscope(*words).lines[0]
    assert all(torch.equal(tensor, before[key]) for key, tensor in live.model.state_dict().items())
    assert live.model.scale.requires_grad
    assert modscope("set", "scale", "--fill", "2", "--expected", digest).code == 0


def test_a_request_id_is_carried_out_once(live: Live, modscope: Modscope) -> None:
    first = modscope("set", "scale", "--fill", "2", "--request-id", "a", "-o", "json").json
    assert modscope("set", "scale", "--fill", "3").code == 0
    assert (
        modscope("set", "scale", "--fill", "2", "--request-id", "a", "-o", "json").json["id"] == first["id"]
    )
    assert live.model.scale.tolist() == [3.0] * 4
