"""watch, export, record, replay, hooks: hooks that are blind, and a watch that overflows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from modscope.v1 import hook_service_pb2
from tests.client.cli.conftest import Modscope
from tests.client.fake_server import Hold
from tests.client.fake_watch import CREATED, BreakOff, Response, Watches, event, hook

COMPILED = "compiled before the hook came"
TURNS = [
    CREATED,
    Response(hooks=[hook("a", "armed"), hook("b", "armed")]),
    Response(events=[event(0)], hooks=[hook("a", "fired", fired=1)]),
    Response(hooks=[hook("b", "blind", COMPILED)]),
    Response(events=[event(1)]),
]
ENDED = Response(ended=hook_service_pb2.WatchEnded(reason="stopped", published=2))
STOPPED = [*TURNS, ENDED]
BLIND = f"note: b: its forward hook is blind: {COMPILED}"
NEVER = f"note: b: its forward hook never fired: {COMPILED}"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the program find a server that sends these messages, one list to each watch."""

    @contextmanager
    def serving(*scripts: list[Response | BreakOff | Hold]) -> Iterator[Watches]:
        watches = Watches(*scripts)
        with watches.served() as endpoint:
            monkeypatch.setenv("MODSCOPE_ADDRESS", endpoint.address)
            monkeypatch.setenv("MODSCOPE_TOKEN", "t")
            yield watches

    return serving


@pytest.mark.parametrize("form", ["table", "jsonl", "name"])
def test_a_hook_that_turns_blind_is_told_of_at_once_and_at_the_end(
    form: str, serve: Any, modscope: Modscope
) -> None:
    with serve(STOPPED):
        outcome = modscope("watch", "*", "-o", form)
    assert outcome.code == 0 and len(outcome.lines) == 2
    noted = [line for line in outcome.err.splitlines() if line.startswith("note:")]
    assert noted == [BLIND, NEVER]
    if form == "table":
        assert outcome.err.splitlines()[-1] == "2 events"


def test_the_last_look_knows_more(serve: Any, modscope: Modscope) -> None:
    with serve([*TURNS, Hold()]) as watches:
        watches.hooks = [hook("a", "fired", fired=2), hook("b", "blind", "forward bypassed")]
        outcome = modscope("watch", "*", "--count", "2")
    assert outcome.code == 0
    assert "never fired: forward bypassed" in outcome.err and "never fired: compiled" not in outcome.err


def test_an_end_by_count_says_nothing_of_what_had_no_time(serve: Any, modscope: Modscope) -> None:
    with serve([*TURNS[:3], Hold()]) as watches:
        watches.hooks = [hook("a", "fired", fired=1), hook("b", "armed")]
        outcome = modscope("watch", "*", "--count", "1", "-o", "jsonl")
    assert (outcome.code, outcome.err) == (0, "")


def test_an_end_by_time_says_what_did_not_come(serve: Any, modscope: Modscope) -> None:
    hold = Hold()
    armed = Response(hooks=[hook("a", "armed"), hook("b", "armed")])
    with serve([CREATED, armed, hold, ENDED]) as watches:
        watches.hooks = [hook("a", "armed"), hook("b", "armed")]
        watches.on_stop = hold.let_go
        outcome = modscope("watch", "*", "--duration", "100ms")
    assert outcome.code == 0
    assert outcome.err.splitlines()[1] == (
        "note: 2 modules: their forward hooks never fired: too early to say why (a, b)"
    )


def test_a_recording_says_it_again(serve: Any, modscope: Modscope, tmp_path: Path) -> None:
    file = str(tmp_path / "r")
    with serve(STOPPED):
        outcome = modscope("record", file, "*")
    assert outcome.code == 0 and BLIND in outcome.err and NEVER in outcome.err
    outcome = modscope("replay", file)
    assert outcome.code == 0 and BLIND in outcome.err and NEVER in outcome.err


def test_an_export_says_it(serve: Any, modscope: Modscope, tmp_path: Path) -> None:
    with serve([*TURNS, Hold()]):
        outcome = modscope("export", "jsonl", str(tmp_path / "e"), "*", "--count", "2")
    assert outcome.code == 0 and BLIND in outcome.err and NEVER in outcome.err


def test_an_export_goes_on_where_its_connection_breaks(
    serve: Any, modscope: Modscope, tmp_path: Path
) -> None:
    first = Response(created=hook_service_pb2.WatchCreated(watch_id="watch-7", paths=["a"], notes=["odd"]))
    again = Response(
        created=hook_service_pb2.WatchCreated(watch_id="watch-7", paths=["a"], notes=["odd", "2 are lost"])
    )
    broken = BreakOff(grpc.StatusCode.UNAVAILABLE)
    with serve(
        [first, Response(events=[event(0)]), broken], [again, Response(events=[event(3, dropped=2)]), Hold()]
    ):
        outcome = modscope("export", "jsonl", str(tmp_path / "e"), "a", "--count", "2")
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert lines[0] == "note: odd" and lines[1].startswith("watching 1 module from step 0 into")
    assert "the next try is in 0.25 s" in lines[2]
    assert lines[3:] == [
        "connected again; the watch has gone on meanwhile",
        "note: 2 are lost",
        "2 events exported, 2 dropped",
    ]


@pytest.mark.parametrize("verb", [["watch", "*"], ["record", "FILE"], ["export", "jsonl", "FILE"]])
def test_an_overflow_that_disconnects_is_an_error(
    verb: list[str], serve: Any, modscope: Modscope, tmp_path: Path
) -> None:
    words = [word.replace("FILE", str(tmp_path / "f")) for word in verb]
    full = BreakOff(grpc.StatusCode.RESOURCE_EXHAUSTED, "more than 10 events waited")
    with serve([CREATED, Response(events=[event(0)]), full]) as watches:
        outcome = modscope(*words, "--overflow", "disconnect", "--queue", "10")
    assert outcome.code == 1
    assert "error: " in outcome.err and "more than 10 events waited" in outcome.err
    assert len(watches.asked) == 1 and watches.asked[0].queue == 10


def test_hooks_tell_state_reason_and_remedy(serve: Any, modscope: Modscope) -> None:
    with serve() as watches:
        watches.hooks = [
            hook("a", "fired", fired=1200, last_step=9, remedy="eager steps: 10"),
            hook("b", "blind", COMPILED),
        ]
        told = modscope("hooks", "-o", "json").json
        table = modscope("hooks").lines
    assert [(one["state"], one["reason"], one["remedy"]) for one in told] == [
        ("fired", "", "eager steps: 10"), ("blind", COMPILED, ""),
    ]  # fmt: skip
    assert table[0].split() == [
        "PATH", "HOOK", "OWNER", "STATE", "FIRED", "LAST", "STEP", "ID", "REASON", "REMEDY",
    ]  # fmt: skip
    assert table[1].split() == [
        "a", "forward", "watch", "fired", "1,200", "9", "watch-7", "-", "eager", "steps:", "10",
    ]  # fmt: skip
    assert table[2].split() == [
        "b", "forward", "watch", "blind", "0", "-", "watch-7", *COMPILED.split(), "-",
    ]  # fmt: skip


def test_options_reach_the_server(serve: Any, modscope: Modscope) -> None:
    with serve([CREATED, ENDED]) as watches:
        outcome = modscope(
            "watch", "a*", "--hook", "metric", "--hook", "gradient", "--payload", "tensor", "--start", "5",
            "--stop", "9", "--first-call", "--phase", "training", "--max-rate", "2.5",
            "--index", "[:, -1, :]", "--dtype", "float16", "--overflow", "block", "--queue", "7",
            "--block-ms", "1.5", "-o", "json",
        )  # fmt: skip
    assert outcome.code == 0
    told = {field.name: value for field, value in watches.asked[0].ListFields()}
    assert (told["start"], told["stop"], told["first_call"], told["dtype"]) == (5, 9, True, "float16")
    assert (told["max_rate"], told["index"], told["queue"], told["block_ms"]) == (2.5, "[:, -1, :]", 7, 1.5)
    assert len(told["hooks"]) == 2 and told["phase"] == 1 and told["overflow"] == 4


@pytest.mark.parametrize(
    "words",
    [
        ("--start", "-1"),
        ("--stop", "0"),
        ("--phase", "validation"),
        ("--max-rate", "0"),
        ("--overflow", "wait"),
        ("--block-ms", "0"),
        ("--queue", "0"),
    ],
)
def test_options_that_mean_nothing(words: tuple[str, str], modscope: Modscope) -> None:
    assert modscope("watch", "*", *words).code == 2
