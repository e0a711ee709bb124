"""snapshot save, list, restore, drop."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch

from tests.client.cli.conftest import Live, Modscope
from tests.client.golden import timeless


def test_saved_listed_restored_dropped(
    live: Live, modscope: Modscope, golden: Callable[[str, str], None]
) -> None:
    live.step(2)
    before = {key: tensor.clone() for key, tensor in live.model.state_dict().items()}
    outcome = modscope("snapshot", "save", "before")
    assert re.fullmatch(r"saved before, [\d.]+ (B|KiB), of step 2\n", outcome.out)
    assert modscope("set", "scale", "--fill", "9").code == 0
    live.step()
    golden("snapshot_list", timeless(modscope("snapshot", "list").out))
    (told,) = modscope("snapshot", "list", "-o", "json").json
    assert (told["name"], told["step"], told["directory"]) == ("before", 2, "")
    assert "dry run, nothing was changed" in modscope("snapshot", "restore", "before", "--dry-run").lines[0]
    assert live.model.scale.tolist() == [9.0] * 4
    assert modscope("snapshot", "restore", "before").lines[0].startswith("restored ")
    assert all(torch.equal(tensor, before[key]) for key, tensor in live.model.state_dict().items())
    assert live.scope.step_count == 2
    assert modscope("snapshot", "drop", "before").out.startswith("dropped before, ")
    assert modscope("snapshot", "list").err == "there is no snapshot\n"


def test_below_a_directory(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    saved = modscope("snapshot", "save", "one", "--directory", str(tmp_path), "-o", "json").json
    assert saved["directory"].startswith(str(tmp_path)) and list(tmp_path.iterdir())
    assert modscope("snapshot", "list", "--directory", str(tmp_path), "-o", "name").lines == ["one"]
    modscope("set", "scale", "--fill", "9")
    assert modscope("snapshot", "restore", "one", "--directory", str(tmp_path)).code == 0
    assert live.model.scale.tolist() == [1.0] * 4
    assert modscope("snapshot", "drop", "one", "-o", "name").lines == ["one"]
    assert not list(tmp_path.iterdir())


def test_refusals_speak_of_the_command_line(live: Live, modscope: Modscope) -> None:
    assert modscope("snapshot", "save", "one").code == 0
    outcome = modscope("snapshot", "save", "one", "-o", "json")
    error = json.loads(outcome.err)
    assert (outcome.code, error["reason"]) == (5, "SNAPSHOT_EXISTS")
    assert "--replace" in error["hint"] and "replace=True" not in error["hint"]
    assert modscope("snapshot", "save", "one", "--replace").code == 0
    assert modscope("snapshot", "save", "../up").code == 5
    assert modscope("snapshot", "restore", "none").code == modscope("snapshot", "drop", "none").code == 3
