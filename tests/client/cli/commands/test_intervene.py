"""intervene, hooks, unhook: a value changed from the shell, told of, and as before again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch

from modscope_client import connect
from tests.client.cli.conftest import Live, Modscope
from tests.end_to_end.serving import until

IDS = torch.arange(5)


def logits(live: Live) -> torch.Tensor:
    """What the model gives, in the mode in which it repeats itself."""
    live.model.eval()
    given: torch.Tensor = live.model(IDS)["logits"].detach()
    return given


def test_scaled_listed_and_as_before(live: Live, modscope: Modscope) -> None:
    before = logits(live)
    outcome = modscope("intervene", "", "--scale", "2", "--key", "logits")
    assert outcome.code == 0
    assert outcome.lines[0].split(maxsplit=1) == [
        "intervention-1",
        "scale 2 key logits at the output of (root)",
    ]
    assert torch.equal(logits(live), before * 2)
    printed = next(line for line in modscope("hooks").lines if "intervention-1" in line)
    assert printed.split() == ["(root)", "forward", "intervention", "fired", "1", "0", "intervention-1"]
    header, row = modscope("unhook", "intervention-1").lines
    assert header.split() == ["ID", "PATH", "HOOK", "ACTION", "APPLIED", "STATE", "NOTE"]
    assert row.split()[:2] == ["intervention-1", "(root)"]
    assert torch.equal(logits(live), before)
    assert modscope("unhook", "--all").err == "no intervention was ended\n"
    assert modscope("unhook", "intervention-7").code == 3


def test_what_is_asked_for_arrives(live: Live, modscope: Modscope, tmp_path: Path) -> None:
    numpy.save(tmp_path / "row.npy", numpy.zeros(1, "float32"))
    cases = {
        "scale 0.5": ["--scale", "0.5", "--hook", "forward_pre", "--calls", "3"],
        "add -1": ["--add", "-1", "--index", "[:, -1]"],
        "clamp 0 inf": ["--clamp", "0", "inf", "--start", "5", "--stop", "7"],
        "zero": ["--zero", "--type", "Linear"],
        "replace float32[1]": ["--replace", str(tmp_path / "row.npy")],
        "noise 0.1 seed 4": ["--noise", "0.1", "--seed", "4", "--lease", "2m"],
    }
    for action, options in cases.items():
        made = modscope("intervene", "body.*", *options, "-o", "json").json
        assert made["action"] == action
    listed = modscope("hooks", "-o", "json").json
    assert {hook["owner"] for hook in listed} == {"safe point", "intervention"}
    ended = {one["action"]: one for one in modscope("unhook", "--all", "-o", "json").json}
    assert list(ended) == list(cases)
    assert (ended["scale 0.5"]["hook"], ended["scale 0.5"]["calls"]) == ("forward_pre", 3)
    assert ended["add -1"]["index"] == "[:, -1]"
    assert (ended["clamp 0 inf"]["start"], ended["clamp 0 inf"]["stop"]) == (5, 7)
    assert ended["zero"]["persist"] and ended["zero"]["lease"] is None
    assert ended["noise 0.1 seed 4"]["lease"]["seconds"] == 120
    assert {one["state"] for one in ended.values()} == {"ended"}


def test_one_that_does_nothing_is_told_of(live: Live, modscope: Modscope) -> None:
    assert modscope("intervene", "", "--zero", "--key", "nothing", "-o", "name").lines == ["intervention-1"]
    before = logits(live)
    assert torch.equal(logits(live), before)
    told = modscope("hooks").err
    assert "intervention-1 (zero) is not acting" in told
    assert "'nothing'" in told and "'logits'" in told


def test_a_lease_from_the_shell_ends_by_itself(live: Live, modscope: Modscope) -> None:
    before = logits(live)
    assert modscope("intervene", "", "--scale", "2", "--key", "logits", "--lease", "1s").code == 0
    until(lambda: torch.equal(logits(live), before), "the lease ends")
    assert modscope("unhook", "--all", "-o", "json").json == []


def test_the_id_of_a_watch_ends_that_watch(live: Live, modscope: Modscope) -> None:
    with connect() as client, client.model().watch("body.1") as events:
        assert modscope("unhook", events.watch_id).code == 0
        assert list(events) == []
    assert all(hook["owner"] != "watch" for hook in modscope("hooks", "-o", "json").json)


@pytest.mark.parametrize(
    "arguments",
    [
        ["intervene", "body.0"],
        ["intervene", "body.0", "--zero", "--scale", "2"],
        ["intervene", "body.0", "--clamp", "1"],
        ["intervene", "body.0", "--zero", "--hook", "backward"],
        ["intervene", "body.0", "--zero", "--calls", "0"],
        ["unhook"],
        ["unhook", "intervention-1", "--all"],
    ],
    ids=" ".join,
)
def test_usage(arguments: list[str], live: Live, modscope: Modscope) -> None:
    outcome = modscope(*arguments)
    assert (outcome.code, outcome.out) == (2, "")


def test_what_is_refused(live: Live, modscope: Modscope) -> None:
    for arguments, code, reason in (
        (["nowhere", "--zero"], 3, "NO_MATCH"),
        (["body.0", "--zero", "--index", "[f()]"], 5, "BAD_REQUEST"),
        (["body.0", "--scale", "nan"], 5, "NOT_FINITE"),
    ):
        outcome = modscope("intervene", *arguments, "-o", "json")
        assert (outcome.code, json.loads(outcome.err)["reason"]) == (code, reason)
