"""state save and load: safetensors files that torch reads and writes too."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.client.cli.conftest import Live, Modscope


def test_saved_whole_and_loaded_again(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    outcome = modscope("state", "save", str(file))
    state = {key: tensor.clone() for key, tensor in live.model.state_dict().items()}
    size = sum(tensor.nbytes for tensor in state.values())
    assert outcome.out == f"saved {len(state)} tensors, {size} B, of step 0 to {file}\n"
    saved = load_file(file)
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[key], tensor) for key, tensor in state.items())
    assert modscope("set", "embed.weight", "--fill", "9").code == 0
    outcome = modscope("state", "load", str(file))
    assert outcome.code == 0
    assert outcome.out.startswith("loaded ")
    assert all(torch.equal(tensor, state[key]) for key, tensor in live.model.state_dict().items())


def test_what_save_tells_in_json(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    live.step(2)
    file = str(tmp_path / "model.safetensors")
    told = modscope("state", "save", file, "-o", "json").json
    size = sum(tensor.nbytes for tensor in live.model.state_dict().values())
    assert told == {
        "file": file,
        "tensors": len(live.model.state_dict()),
        "bytes": size,
        "step": 2,
        "not_carried": [],
    }


def test_keys_that_do_not_match(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    file = str(tmp_path / "part.safetensors")
    save_file({"scale": torch.full((4,), 5.0), "extra": torch.zeros(1)}, file)
    outcome = modscope("state", "load", file, "-o", "json")
    assert outcome.code == 5
    error = json.loads(outcome.err)
    assert error["reason"] == "KEYS_MISMATCH"
    assert "extra" in error["message"]
    assert "--no-strict" in error["hint"]
    assert live.model.scale.tolist() == [1.0] * 4
    expected = copy.deepcopy(live.model).load_state_dict(load_file(file), strict=False)
    result = modscope("state", "load", file, "--no-strict", "-o", "json").json
    assert result["unexpected_keys"] == expected.unexpected_keys
    assert sorted(result["missing_keys"]) == sorted(expected.missing_keys)
    assert result["operation"]["kind"] == "load_state_dict"
    assert live.model.scale.tolist() == [5.0] * 4
    printed = modscope("state", "load", file, "--no-strict").lines
    assert "  unexpected  extra" in printed
    assert "  missing  embed.weight" in printed


def test_no_such_file(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    assert modscope("state", "load", str(tmp_path / "none.safetensors")).code == 2
    assert modscope("state", "save", str(tmp_path)).code == 2


def test_a_terminal_gets_a_progress_bar_on_stderr(
    live: Live, modscope: Modscope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "model.safetensors")
    assert modscope("state", "save", file).err == ""
    stderr = sys.stderr
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: self is stderr, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for verb, label in (("save", "saving"), ("load", "loading")):
        outcome = modscope("state", verb, file)
        assert outcome.code == 0
        assert label in outcome.err
        assert label not in outcome.out
