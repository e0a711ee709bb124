"""freeze and unfreeze."""

from __future__ import annotations

import json

from tests.client.cli.conftest import Live, Modscope


def trainable(live: Live) -> list[str]:
    return [name for name, parameter in live.model.named_parameters() if parameter.requires_grad]


def test_a_module_a_glob_a_type(live: Live, modscope: Modscope) -> None:
    assert trainable(live) == ["scale", "embed.weight", "body.2.weight", "body.2.bias"]
    operation = modscope("freeze", "body", "-o", "json").json
    assert (operation["kind"], operation["outcome"]) == ("freeze", "applied")
    assert trainable(live) == ["scale", "embed.weight"]
    assert modscope("unfreeze", "*.bias").code == 0
    assert trainable(live) == ["scale", "embed.weight", "body.0.bias", "body.2.bias"]
    assert modscope("freeze", "*", "--type", "Linear").code == 0
    assert "body.0.bias" not in trainable(live)


def test_what_it_prints(live: Live, modscope: Modscope) -> None:
    outcome = modscope("freeze", "body.2")
    head, *paths = outcome.lines
    assert head.startswith("froze 2 tensors at step 0 (")
    assert paths == ["  body.2.weight", "  body.2.bias"]
    assert modscope("unfreeze", "body.2").out.startswith("unfroze 2 tensors at step 0 (")


def test_notes_go_to_stderr(live: Live, modscope: Modscope) -> None:
    outcome = modscope("unfreeze", "*", "-o", "json")
    assert [f"note: {text}" for text in outcome.json["notes"]] == outcome.err.splitlines()


def test_nothing_left_to_train(live: Live, modscope: Modscope) -> None:
    outcome = modscope("freeze", "*", "-o", "json")
    assert outcome.code == 5
    error = json.loads(outcome.err)
    assert error["reason"] == "WOULD_BREAK_TRAINING"
    assert "--force" in error["hint"]
    assert "force=True" not in error["hint"]
    assert len(trainable(live)) == 4
    assert modscope("freeze", "*", "--force").code == 0
    assert trainable(live) == []


def test_nothing_matches(live: Live, modscope: Modscope) -> None:
    for verb in ("freeze", "unfreeze"):
        assert modscope(verb, "nope.*").code == 3
