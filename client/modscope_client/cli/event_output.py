"""Events on stdout, in the form that was asked for, each at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from modscope_client.cli.events import EventLines
from modscope_client.cli.messages import note, say
from modscope_client.cli.serialize import json_line, yaml_text
from modscope_client.cli.text import one_line, plural
from modscope_client.errors import ModscopeError, Unavailable

if TYPE_CHECKING:
    from modscope_client.cli.settings import Output
    from modscope_client.sinks import Watched
    from modscope_client.subscription import Subscription
    from modscope_client.types import Event

__all__ = ["event_writer", "follow", "stop", "tally", "watched_text"]


def event_writer(
    output: Output, watch: Watched, hooks: Sequence[str], *, begun: str = "watching {}; Ctrl-C ends it"
) -> Callable[[Event], None]:
    """A function that writes an event and flushes. Says first what the watcher should know.

    begun: what is said above a table; {} stands for the modules and the step.
    """
    for text in watch.notes:
        note(text)
    if output in ("json", "jsonl"):
        return lambda event: click.echo(json_line(event), nl=False)
    if output == "yaml":
        return lambda event: click.echo(f"---\n{yaml_text(event)}", nl=False)
    if output == "name":
        return lambda event: click.echo(one_line(event.path))
    say(begun.format(f"{watched_text(watch, hooks)} from step {watch.step:,}"))
    lines = EventLines(watch.paths, hooks)
    return lambda event: click.echo(lines.line(event))


def watched_text(watch: Watched, hooks: Sequence[str]) -> str:
    """What is watched, in a word or two."""
    modules = plural(len(watch.paths), "module")
    if "metric" not in hooks:
        return modules
    return "reported metrics" if set(hooks) == {"metric"} else f"{modules} and reported metrics"


def follow(
    events: Subscription, show: Callable[[Event], None], count: int | None, *, is_bounded: bool
) -> None:
    """Shows events until `count` have been, or there are no more.

    is_bounded: whether an end was asked for, so that a server that closes before is an error.
    """
    seen = 0
    try:
        for event in events:
            show(event)
            seen += 1
            if seen == count:
                return
    except Unavailable as error:
        if is_bounded or error.reason != "CLOSED":
            raise
        note(error.message)


def stop(events: Subscription) -> None:
    """Ends a watch from another thread, whatever became of its server."""
    try:
        events.stop()
    except ModscopeError:
        events.close()


def tally(watch: Watched) -> str:
    """How many events a watch has had, how many of them were lost, and what it has spared or cost."""
    counters = watch.counters
    parts = [plural(counters.published, "event")]
    if counters.dropped:
        parts.append(f"{counters.dropped:,} of them dropped")
    if counters.skipped:
        parts.append(f"{counters.skipped:,} more left out by its rate")
    if counters.blocked_seconds:
        parts.append(f"for which training waited {counters.blocked_seconds:.3g} s")
    return ", ".join(parts)
