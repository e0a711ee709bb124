"""hooks: what modscope has put on a model."""

from __future__ import annotations

from modscope_client import connect
from tests.client.cli.conftest import Live, Modscope


def test_the_hooks_of_a_watch(live: Live, modscope: Modscope) -> None:
    with connect() as client, client.model().watch("body.1", hooks=("forward",)) as events:
        live.step(3)
        next(events)
        (hook,) = (h for h in modscope("hooks", "-o", "json").json if h["owner"] == "watch")
        assert (hook["path"], hook["kind"], hook["watch_ids"]) == ("body.1", "forward", [events.watch_id])
        assert (hook["fired"], hook["last_step"]) == (3, 2)
        printed = next(line for line in modscope("hooks").lines if line.startswith("body.1"))
        assert (hook["state"], hook["reason"], hook["remedy"]) == ("fired", "", "")
        assert printed.split() == ["body.1", "forward", "watch", "fired", "3", "2", events.watch_id]
    assert all(h["owner"] != "watch" for h in modscope("hooks", "-o", "json").json)
