"""`modscope watch`: what modules see and give while they work, one line per event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modscope_client.cli.event_output import event_writer, follow, stop, tally
from modscope_client.cli.messages import say
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import plural
from modscope_client.cli.verbs import Verb
from modscope_client.cli.watch_options import INTERRUPTED, limit_options, stopped_after, watch_options

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
    ),
)
@watch_options()
@limit_options
@click.pass_obj
def command(settings: Settings, watch: dict[str, Any], count: int | None, duration: float | None) -> None:
    """Stream what modules see and give while they work.

    One line per event, written at once; -o json and -o jsonl write one object per line. GLOB is on
    module paths. Training never waits: events that come faster than they are written are dropped,
    and counted.

    Ends with 0 after --count or --duration, or when the server closes and neither was given; with
    130 on Ctrl-C. However it ends, its hooks are gone.
    """
    with settings.remote_model() as model:
        with model.watch(**watch) as events, stopped_after(duration, lambda: stop(events)):
            write = event_writer(settings.output, events, watch["hooks"])
            shown = 0

            def show(event: Event) -> None:
                nonlocal shown
                write(event)
                shown += 1

            try:
                follow(events, show, count, is_bounded=bool(count or duration))
            except KeyboardInterrupt:
                raise click.exceptions.Exit(INTERRUPTED) from None
            finally:
                if settings.output == "table":
                    total = tally(events)
                    apart = shown != events.counters.published
                    say(f"{plural(shown, 'event')}; the watch had {total}" if apart else total)
