"""`modscope replay`: a recording printed, or fed to a monitoring tool, without a server."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import click

from modscope_client.cli.arguments import INPUT_FILE
from modscope_client.cli.endings import INTERRUPTED
from modscope_client.cli.event_output import event_writer, tally
from modscope_client.cli.hook_notes import HookNotes
from modscope_client.cli.messages import say
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import plural
from modscope_client.cli.verbs import Verb

if TYPE_CHECKING:
    from modscope_client.recording import Recording

__all__ = ["command"]


@click.command(
    "replay",
    cls=Verb,
    examples=(
        "modscope replay spike.msrec",
        "modscope replay spike.msrec -o jsonl | jq .step",
        "modscope replay spike.msrec --into tensorboard runs/spike",
    ),
)
@click.argument("file", type=INPUT_FILE)
@click.option(
    "--into", nargs=2, metavar="SINK TARGET", help="tensorboard DIR, prometheus HOST:PORT, jsonl FILE."
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many events.")
@click.pass_obj
def command(settings: Settings, /, file: str, into: tuple[str, str] | None, count: int | None) -> None:
    """Print a recording, or feed it to a monitoring tool.

    Needs no server. Prints as 'modscope watch' does, or gives the events to a sink of 'modscope export';
    one that serves, such as prometheus, then stays until Ctrl-C. A file that breaks off is replayed up
    to there, and then is an error.
    """
    from modscope_client.recording import Recording

    with Recording(file) as recording:
        if into is None:
            _print(settings, recording, count)
        else:
            _feed(recording, *into, count)


def _print(settings: Settings, recording: Recording, count: int | None) -> None:
    notes = HookNotes()
    notes.follow(recording)
    show = event_writer(settings.output, recording, recording.hooks, begun="recorded: {}")
    for event in itertools.islice(recording, count):
        show(event)
    notes.sum_up()
    if settings.output == "table" and count is None:
        say(tally(recording))


def _feed(recording: Recording, name: str, target: str, count: int | None) -> None:
    from modscope_client.recording import pour
    from modscope_client.sinks import make_sink

    sink = make_sink(name, target)

    def stay() -> None:
        if sink.serves:
            say(f"all of it is at {sink.place}; Ctrl-C ends it")
            threading.Event().wait()

    try:
        given = pour(recording, sink, count=count, then=stay)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None
    say(f"{plural(given, 'event')} into {sink.place}")
