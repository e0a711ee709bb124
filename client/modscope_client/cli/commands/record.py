"""`modscope record`: a watch into a file, to be replayed without a server."""

from __future__ import annotations

import os
from typing import Any

import click

from modscope_client.cli.arguments import OUTPUT_FILE
from modscope_client.cli.endings import stopped_after, stopped_by_signals
from modscope_client.cli.event_output import follow, stop, tally, watched_text
from modscope_client.cli.hook_notes import HookNotes
from modscope_client.cli.messages import note, say
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import byte_count, one_line, plural
from modscope_client.cli.verbs import Verb
from modscope_client.cli.watch_options import limit_options, watch_options

__all__ = ["command"]


@click.command(
    "record",
    cls=Verb,
    examples=(
        "modscope record spike.msrec 'decoder.*' --hook forward --hook backward --duration 5m",
        "modscope record inputs.msrec embed --hook forward_pre --payload tensor --count 100",
    ),
)
@click.argument("file", type=OUTPUT_FILE)
@watch_options(glob="*")
@limit_options
@click.pass_obj
def command(
    settings: Settings, /, file: str, watch: dict[str, Any], count: int | None, duration: float | None
) -> None:
    """Record a watch into FILE.

    'modscope replay' prints it or feeds it to a monitoring tool, without a server. A file of that name is
    replaced. Where the recorder is killed its last seconds are lost: two of a busy watch, five of a
    quiet one.

    Ends with 0 after --count or --duration, or when the server closes and neither was given; with 130
    on Ctrl-C, with 143 on SIGTERM, with 1 where --overflow disconnect has ended it.
    """
    from modscope_client.recording import Recorder

    with settings.remote_model() as model:
        watched = model.watch(**watch)
        recorder = Recorder(file, model.info(), watched.request, count=count)
        watched.tap = recorder.take
        notes = HookNotes()
        notes.follow(watched)
        with watched as events, stopped_by_signals(lambda: stop(events)):
            with recorder, stopped_after(duration, lambda: stop(events)):
                for text in events.notes:
                    note(text)
                what = watched_text(events, watch["hooks"])
                say(f"recording {what}, from step {events.step:,}")
                follow(events, lambda event: None, count, is_bounded=bool(count or duration))
            notes.sum_up()
            size = byte_count(os.path.getsize(file))
            held = plural(recorder.events, "event")
            say(f"{held} in {one_line(file)}, {size}; the watch had {tally(events)}")
