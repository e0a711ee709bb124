"""What is said of hooks that are blind: at once, together where the reason is one, and again at the end."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from modscope_client.cli.hook_notes import HookNotes
from modscope_client.types import HookInfo

NEVER = "never called"


class Watch:
    """As much of a watch as the notes look at."""

    watch_id = "watch-1"
    noticed: Any = None
    settled: Any = None


class Model:
    """Lists these hooks."""

    def __init__(self, *hooks: HookInfo) -> None:
        self.hooks = lambda: list(hooks)


class Said:
    """Notes that follow a watch, and what they have said."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.notes = HookNotes(self.texts.append)
        self.watch = Watch()
        self.notes.follow(cast("Any", self.watch))

    def message(self, *hooks: HookInfo) -> list[str]:
        """What one message of the watch has them say."""
        self.texts.clear()
        for one in hooks:
            self.watch.noticed(one)
        self.watch.settled()
        return list(self.texts)

    def look(self, *hooks: HookInfo) -> None:
        """Have them ask a model that lists these."""
        self.notes.look(cast("Any", Model(*hooks)), cast("Any", self.watch))

    def end(self, *, cut_short: bool = False) -> list[str]:
        """What they say at the end."""
        self.texts.clear()
        self.notes.sum_up(cut_short=cut_short)
        return list(self.texts)


def hook(path: str, state: str, reason: str = "", kind: str = "forward", **more: Any) -> HookInfo:
    fired = {"fired": 3 if state == "fired" else 0, "last_step": None}
    return HookInfo(path, kind, "watch", ("watch-1",), state=state, reason=reason, **{**fired, **more})


def test_what_is_well_is_not_spoken_of() -> None:
    said = Said()
    assert said.message(hook("a", "armed"), hook("b", "armed")) == []
    assert said.message(hook("a", "fired"), hook("b", "fired")) == []
    assert said.end() == []


def test_one_that_turns_blind_and_sees_again() -> None:
    said = Said()
    said.message(hook("a", "armed"))
    assert said.message(hook("a", "blind", NEVER)) == ["a: its forward hook is blind: never called"]
    assert said.message(hook("a", "blind", NEVER)) == []
    assert said.message(hook("a", "blind", "frozen")) == ["a: its forward hook is blind: frozen"]
    assert said.message(hook("a", "fired")) == ["a: its forward hook sees again"]


def test_those_of_one_reason_are_told_together() -> None:
    said = Said()
    many = [hook(f"m{i}", "blind", NEVER) for i in range(6)]
    told = said.message(*many, hook("b", "blind", "frozen"), hook("c", "blind", NEVER, "backward"))
    assert told == [
        "6 modules: their forward hooks are blind: never called (m0, m1, m2, m3 and 2 more)",
        "b: its forward hook is blind: frozen",
        "c: its backward hook is blind: never called",
    ]
    assert said.message(hook("m0", "fired"), hook("m1", "fired")) == [
        "2 modules: their forward hooks see again (m0, m1)"
    ]


def test_the_kinds_of_one_place_are_told_together() -> None:
    said = Said()
    kinds = ("forward_pre", "forward", "backward")
    of = {path: [hook(path, "blind", NEVER, kind) for kind in kinds] for path in "abc"}
    assert said.message(*of["a"]) == [
        "a: its forward_pre, forward and backward hooks are blind: never called"
    ]
    assert said.message(*of["b"][1:], *of["c"][1:]) == [
        "2 modules: their forward and backward hooks are blind: never called (b, c)"
    ]
    frozen = [hook(f"{path}.weight", "blind", "frozen", "gradient") for path in "ab"]
    assert said.message(*frozen) == [
        "2 parameters: their gradient hooks are blind: frozen (a.weight, b.weight)"
    ]


def test_what_a_hook_that_fires_cannot_see() -> None:
    said = Said()
    partial = hook("relu", "fired", "in-place module: no gradient of the input", "backward")
    assert said.message(partial) == [
        "relu: its backward hook does not see all: in-place module: no gradient of the input"
    ]
    assert said.message(partial) == [] == said.end()


def test_one_that_sees_again_but_not_all() -> None:
    said = Said()
    said.message(hook("relu", "blind", NEVER, "backward"))
    assert said.message(hook("relu", "fired", "no gradient of the input", "backward")) == [
        "relu: its backward hook sees again",
        "relu: its backward hook does not see all: no gradient of the input",
    ]


def test_at_the_end_those_that_never_fired_and_why() -> None:
    said = Said()
    said.message(hook("a", "fired"), hook("b", "blind", NEVER), hook("c", "armed"), hook("d", "armed"))
    blind = "b: its forward hook never fired: never called"
    assert said.end() == [blind], "others may have fired since"
    said.look()
    assert said.end() == [blind, "2 modules: their forward hooks never fired: too early to say why (c, d)"]
    assert said.end(cut_short=True) == [blind]


def test_a_last_look_is_newer_than_what_was_told() -> None:
    said = Said()
    said.message(hook("a", "armed"), hook("b", "armed"), hook("d", "armed", "it begins at step 9"))
    others = dataclasses.replace(hook("c", "blind", NEVER), watch_ids=("watch-2",))
    said.look(hook("a", "fired"), hook("b", "blind", NEVER), others)
    assert said.end() == [
        "b: its forward hook never fired: never called",
        "d: its forward hook never fired: it begins at step 9",
    ]


def test_what_compiled_code_has_cost() -> None:
    said = Said()
    said.message(hook("a", "fired", remedy="eager steps: 2"), hook("b", "fired", remedy="eager steps: 2"))
    assert said.end() == ["so that hooks fire, compiled code ran eagerly: eager steps: 2"]


def test_names_of_others_cannot_drive_the_terminal() -> None:
    said = Said()
    (told,) = said.message(hook("a\x1b[2J", "blind", "because\nof this"))
    assert "\x1b" not in told and "\n" not in told
    assert said.message(hook("", "blind", NEVER)) == ["(root): its forward hook is blind: never called"]
    assert "(metrics)" in said.message(hook("", "blind", NEVER, "metric"))[0]
