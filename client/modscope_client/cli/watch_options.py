"""What the verbs that watch have in common: which modules, what of them, for how long."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from modscope_client.cli.arguments import MODULE_PATH, type_option
from modscope_client.cli.settings import DURATION

__all__ = ["INTERRUPTED", "limit_options", "stopped_after", "stopped_by_signals", "watch_options"]

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_HOOKS = ("forward_pre", "forward", "backward_pre", "backward")
_PAYLOADS = ("none", "stats", "histogram", "tensor")
_WATCH = {
    "glob": "glob",
    "type_": "type",
    "hooks": "hooks",
    "payload": "payload",
    "every": "every",
    "sample": "sample",
}
"""What click calls an option -> what RemoteModel.watch calls it."""


def watch_options(*, glob: str | None = None, payload: str = "stats") -> Callable[[F], F]:
    """The options of a watch, given to the verb as `watch`: keyword arguments of RemoteModel.watch.

    glob: the default of GLOB; None where it must be given.
    """

    def decorate(verb: F) -> F:
        def gathered(*arguments: Any, **options: Any) -> Any:
            watch = {theirs: options.pop(ours) for ours, theirs in _WATCH.items()}
            return verb(*arguments, watch=watch, **options)

        gathered.__doc__ = verb.__doc__
        gathered.__click_params__ = getattr(verb, "__click_params__", [])  # type: ignore[attr-defined]
        made: Any = gathered
        for option in reversed(_options(glob, payload)):
            made = option(made)
        return made  # type: ignore[no-any-return]

    return decorate


def _options(glob: str | None, payload: str) -> list[Callable[[Any], Any]]:
    return [
        click.argument("glob", type=MODULE_PATH)
        if glob is None
        else click.argument("glob", metavar="[GLOB]", type=MODULE_PATH, default=glob),
        type_option("the module"),
        click.option(
            "--hook",
            "hooks",
            multiple=True,
            type=click.Choice(_HOOKS),
            default=("forward",),
            help="Which hooks.  [forward]",
        ),
        click.option(
            "--payload",
            type=click.Choice(_PAYLOADS),
            default=payload,
            help=f"How much of each value.  [{payload}]",
        ),
        click.option(
            "--every", type=click.IntRange(min=1), default=1, metavar="N", help="Only steps that N divides."
        ),
        click.option(
            "--sample",
            type=click.IntRange(min=1),
            metavar="N",
            help="Statistics of at most N elements of a tensor.  [all]",
        ),
    ]


def limit_options(verb: F) -> F:
    """`--count N` and `--duration TIME`, given to the verb as `count` and `duration`."""
    count = click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many events.")
    duration = click.option("--duration", type=DURATION, metavar="TIME", help="End after so long: 30s, 5m.")
    return count(duration(verb))


@contextmanager
def stopped_after(seconds: float | None, stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop`, in a thread of its own, when the time is over; None means never."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop`, in a thread of its own, on Ctrl-C or SIGTERM; then exits with 128 + its number.

    Unlike KeyboardInterrupt this never breaks into a write, so that files are whole. A second Ctrl-C is one.
    """
    seen: list[int] = []

    def handle(number: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        threading.Thread(target=stop, daemon=True).start()

    may = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM) if may}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if seen:
        raise click.exceptions.Exit(128 + seen[0])
