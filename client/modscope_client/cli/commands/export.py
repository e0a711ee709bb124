"""`modscope export`: a watch into a monitoring tool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modscope_client.cli.endings import stopped_after, stopped_by_signals
from modscope_client.cli.event_output import watched_text
from modscope_client.cli.hook_notes import HookNotes
from modscope_client.cli.messages import note, say
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import plural
from modscope_client.cli.verbs import Verb, VerbGroup
from modscope_client.cli.watch_options import limit_options, watch_options
from modscope_client.sinks import make_sink, sink_names

if TYPE_CHECKING:
    from modscope_client.errors import ModscopeError
    from modscope_client.feed import Feed
    from modscope_client.sinks import Sink
    from modscope_client.subscription import Subscription

__all__ = ["command"]

F = TypeVar("F", bound=Callable[..., Any])


class _Sinks(VerbGroup):
    """The sinks of modscope, then those that other packages have installed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the sinks."""
        return [*self.commands, *(name for name in sink_names() if name not in self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of a sink, made here where the sink is another package's; None where there is none."""
        own = super().get_command(ctx, cmd_name)
        return _plug_in(cmd_name) if own is None and cmd_name in sink_names() else own


@click.group(
    "export",
    cls=_Sinks,
    examples=("modscope export tensorboard runs/today", "modscope export prometheus --port 9464 'encoder.*'"),
)
def command() -> None:
    """Feed a monitoring tool from a watch.

    Training never waits, unless --overflow block says so: events that come faster than they are taken are
    dropped, and counted. Where the connection breaks, the watch goes on for 30 seconds and is resumed, and
    what the server still holds is not lost. Where the server goes, it is armed anew as soon as one answers
    at that address again.

    Ends with 0 after --count or --duration, with 130 on Ctrl-C, with 143 on SIGTERM, with 1 where
    --overflow disconnect has ended it.
    """


def _feed_options(payload: str) -> Callable[[F], F]:
    """The options of a watch and its limits, and `--wait`."""
    wait = click.option("--wait", is_flag=True, help="Wait for the server, where none answers yet.")

    def decorate(verb: F) -> F:
        made: Any = click.pass_obj(verb)
        return watch_options(glob="*", payload=payload)(limit_options(wait(made)))  # type: ignore[no-any-return]

    return decorate


@command.command("tensorboard", examples=("modscope export tensorboard runs/today 'encoder.*' --every 10",))
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@_feed_options("histogram")
def tensorboard(settings: Settings, /, folder: str, **options: Any) -> None:
    """Write TensorBoard event files into DIR.

    Statistics become scalars such as forward/mlp.w1/mean, histograms become histograms, and what the
    loop reports becomes reported/loss, all at the step of training.
    """
    _run(settings, "tensorboard", folder, **options)


@command.command("prometheus", examples=("modscope export prometheus --port 9464 --every 100",))
@click.option("--port", type=click.IntRange(0, 65535), required=True, help="Port; 0 takes a free one.")
@click.option("--host", default="127.0.0.1", help="Address to serve on.  [127.0.0.1]")
@_feed_options("stats")
def prometheus(settings: Settings, /, port: int, host: str, **options: Any) -> None:
    """Serve the last statistics for Prometheus to scrape.

    At http://HOST:PORT/metrics, readable by whoever reaches that address. The metrics and their labels
    are listed in docs/exporters.md.
    """
    _run(settings, "prometheus", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", **options)


@command.command("jsonl", examples=("modscope export jsonl events.jsonl --type Linear --payload stats",))
@click.argument("file", type=click.Path(dir_okay=False))
@_feed_options("stats")
def jsonl(settings: Settings, /, file: str, **options: Any) -> None:
    """Append events to FILE, one JSON object per line.

    The same objects that 'modscope watch -o jsonl' prints.
    """
    _run(settings, "jsonl", file, **options)


def _plug_in(name: str) -> click.Command:
    """The verb of another package's sink."""

    @click.command(name, cls=Verb, examples=(f"modscope export {name} TARGET '*'",))
    @click.argument("target")
    @_feed_options("stats")
    def verb(settings: Settings, /, target: str, **options: Any) -> None:
        _run(settings, name, target, **options)

    verb.help = f"Feed the sink {name!r}, which another package has installed."
    return verb


def _run(
    settings: Settings,
    name: str,
    target: str,
    *,
    watch: dict[str, Any],
    count: int | None,
    duration: float | None,
    wait: bool,
) -> None:
    from modscope_client.feed import Feed

    sink = make_sink(name, target)
    notes = HookNotes()
    told = _Told(sink, watch["hooks"])
    feed = Feed(
        settings.client,
        sink,
        model=settings.model,
        watch=watch,
        wait=wait,
        armed=told.armed,
        lost=told.lost,
        resumed=told.resumed,
        prepared=notes.follow,
    )
    with stopped_by_signals(feed.stop):
        with stopped_after(duration, feed.stop):
            feed.run(count)
        notes.sum_up()
        say(_total(feed))


class _Told:
    """What is said of the connections of an export."""

    def __init__(self, sink: Sink, hooks: Sequence[str]) -> None:
        self._sink, self._hooks = sink, hooks
        self._notes: set[str] = set()

    def armed(self, events: Subscription) -> None:
        """A watch has begun."""
        self._notes.clear()
        self._note(events)
        what = watched_text(events, self._hooks)
        say(f"watching {what} from step {events.step:,} into {self._sink.place}; Ctrl-C ends it")

    def lost(self, error: ModscopeError, seconds: float) -> None:
        """A connection is gone."""
        note(f"{error.message}; the next try is in {seconds:g} s")

    def resumed(self, events: Subscription) -> None:
        """A watch goes on; its notes tell what is lost."""
        say("connected again; the watch has gone on meanwhile")
        self._note(events)

    def _note(self, events: Subscription) -> None:
        for text in events.notes:
            if text not in self._notes:
                self._notes.add(text)
                note(text)


def _total(feed: Feed) -> str:
    dropped = f", {feed.dropped:,} dropped" if feed.dropped else ""
    return f"{plural(feed.delivered, 'event')} exported{dropped}"
