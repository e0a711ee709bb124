"""Events on stdout, in the form that was asked for, each at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import click

from modscope_client.cli.events import EventLines
from modscope_client.cli.messages import note, say
from modscope_client.cli.serialize import json_line, yaml_text
from modscope_client.cli.text import one_line, plural

if TYPE_CHECKING:
    from modscope_client.cli.settings import Output
    from modscope_client.types import Event, WatchCounters

__all__ = ["Watched", "event_writer", "tally"]


class Watched(Protocol):
    """What a watch tells of itself, live or recorded."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the modules that it watches."""

    @property
    def step(self) -> int:
        """step_count at which it was armed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the watcher should know."""

    @property
    def counters(self) -> WatchCounters:
        """Its counters, as they were told last."""


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
    say(begun.format(f"{plural(len(watch.paths), 'module')} from step {watch.step:,}"))
    lines = EventLines(watch.paths, hooks)
    return lambda event: click.echo(lines.line(event))


def tally(watch: Watched) -> str:
    """How many events a watch has had, and how many of them were lost."""
    counters = watch.counters
    dropped = f", {counters.dropped:,} of them dropped" if counters.dropped else ""
    return f"{plural(counters.published, 'event')}{dropped}"
