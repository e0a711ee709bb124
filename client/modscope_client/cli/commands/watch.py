"""`modscope watch`: what modules see and give while they work, one line per event."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from modscope_client.cli.arguments import MODULE_PATH, type_option
from modscope_client.cli.events import EventLines
from modscope_client.cli.messages import note, say
from modscope_client.cli.serialize import json_line, yaml_text
from modscope_client.cli.settings import DURATION, Settings
from modscope_client.cli.text import one_line, plural
from modscope_client.cli.verbs import Verb
from modscope_client.errors import ModscopeError, Unavailable

if TYPE_CHECKING:
    from modscope_client.subscription import Subscription
    from modscope_client.types import Event

__all__ = ["command"]

_HOOKS = ("forward_pre", "forward", "backward_pre", "backward")
_PAYLOADS = ("none", "stats", "histogram", "tensor")
_INTERRUPTED = 130


@click.command(
    "watch",
    cls=Verb,
    examples=(
        "modscope watch '*' --type ReLU",
        "modscope watch encoder.layers.0 --hook forward --hook backward --every 100",
        "modscope watch 'head.*' --count 50 -o jsonl > events.jsonl",
    ),
)
@click.argument("glob", type=MODULE_PATH)
@type_option("the module")
@click.option(
    "--hook",
    "hooks",
    multiple=True,
    type=click.Choice(_HOOKS),
    default=("forward",),
    help="Which hooks.  [forward]",
)
@click.option(
    "--payload", type=click.Choice(_PAYLOADS), default="stats", help="How much of each value.  [stats]"
)
@click.option(
    "--every", type=click.IntRange(min=1), default=1, metavar="N", help="Only steps that N divides."
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many events.")
@click.option("--duration", type=DURATION, metavar="TIME", help="End after so long: 30s, 5m.")
@click.pass_obj
def command(
    settings: Settings,
    glob: str,
    type_: str | None,
    hooks: tuple[str, ...],
    payload: str,
    every: int,
    count: int | None,
    duration: float | None,
) -> None:
    """Stream what modules see and give while they work.

    One line per event, written at once; -o json and -o jsonl write one object per line. GLOB is on
    module paths. Training never waits: events that come faster than they are written are dropped,
    and counted.

    Ends with 0 after --count or --duration, or when the server closes and neither was given; with
    130 on Ctrl-C. However it ends, its hooks are gone.
    """
    with settings.remote_model() as model:
        watch = model.watch(glob, type=type_, hooks=hooks, payload=payload, every=every)
        with watch as events, _time_limit(events, duration):
            show = _writer(settings, events, hooks)
            try:
                _follow(events, show, count, is_bounded=bool(count or duration))
            except KeyboardInterrupt:
                raise click.exceptions.Exit(_INTERRUPTED) from None
            finally:
                if settings.output == "table":
                    say(_tally(events))


def _follow(
    events: Subscription, show: Callable[[Event], None], count: int | None, *, is_bounded: bool
) -> None:
    """Shows events until `count` have been, or there are no more."""
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


def _writer(settings: Settings, events: Subscription, hooks: tuple[str, ...]) -> Callable[[Event], None]:
    """A function that writes an event in the form that was asked for, and flushes."""
    for text in events.notes:
        note(text)
    if settings.output in ("json", "jsonl"):
        return lambda event: click.echo(json_line(event), nl=False)
    if settings.output == "yaml":
        return lambda event: click.echo(f"---\n{yaml_text(event)}", nl=False)
    if settings.output == "name":
        return lambda event: click.echo(one_line(event.path))
    say(f"watching {plural(len(events.paths), 'module')} from step {events.step:,}; Ctrl-C ends it")
    lines = EventLines(events.paths, hooks)
    return lambda event: click.echo(lines.line(event))


def _tally(events: Subscription) -> str:
    counters = events.counters
    dropped = f", {counters.dropped:,} of them dropped" if counters.dropped else ""
    return f"{plural(counters.published, 'event')}{dropped}"


@contextmanager
def _time_limit(events: Subscription, seconds: float | None) -> Iterator[None]:
    """Stops the watch when the time is over."""
    if seconds is None:
        yield
        return

    def stop() -> None:
        try:
            events.stop()
        except ModscopeError:
            events.close()

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
