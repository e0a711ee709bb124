"""`modscope watch`: what modules see and give while they work, one line per event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modscope_client.cli.endings import INTERRUPTED, stopped_after
from modscope_client.cli.event_output import event_writer, follow, stop, tally
from modscope_client.cli.hook_notes import HookNotes
from modscope_client.cli.messages import say
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import plural
from modscope_client.cli.verbs import Verb
from modscope_client.cli.watch_options import limit_options, watch_options

if TYPE_CHECKING:
    from modscope_client.types import Event

__all__ = ["command"]


@click.command(
    "watch",
    cls=Verb,
    examples=(
        "modscope watch '*' --type ReLU",
        "modscope watch encoder.layers.0 --hook forward --hook backward --every 100",
        "modscope watch 'head.*' --count 50 -o jsonl > events.jsonl",
        "modscope watch lm_head --payload tensor --index '[:, -1, :]' --dtype float16 --first-call",
        "modscope watch '*' --hook gradient --hook metric --start 1000 --stop 1100",
    ),
)
@watch_options()
@limit_options
@click.pass_obj
def command(settings: Settings, watch: dict[str, Any], count: int | None, duration: float | None) -> None:
    """Stream what modules see and give while they work.

    One line per event, written as it comes; those of a busy stream come in batches, up to a second late.
    -o json and -o jsonl write one object per line. GLOB is on module paths. Training never waits, unless
    --overflow block says so: events that come faster than they are written are dropped, and counted. A
    hook that cannot see is told of, with the reason.

    Ends with 0 after --count or --duration, or when the server closes and neither was given; with
    130 on Ctrl-C; with 1 where --overflow disconnect has ended it. However it ends, its hooks are gone.
    """
    notes = HookNotes()
    with settings.remote_model() as model:
        watched = model.watch(**watch)
        notes.follow(watched)

        def end() -> None:
            notes.look(model, watched)
            stop(watched)

        with watched as events, stopped_after(duration, end):
            write = event_writer(settings.output, events, watch["hooks"])
            shown = 0

            def show(event: Event) -> None:
                nonlocal shown
                write(event)
                shown += 1

            try:
                follow(events, show, count, is_bounded=bool(count or duration))
                notes.look(model, events)
            except KeyboardInterrupt:
                notes.look(model, events)
                raise click.exceptions.Exit(INTERRUPTED) from None
            finally:
                notes.sum_up(cut_short=shown == count)
                if settings.output == "table":
                    total = tally(events)
                    apart = shown != events.counters.published
                    say(f"{plural(shown, 'event')}; the watch had {total}" if apart else total)
