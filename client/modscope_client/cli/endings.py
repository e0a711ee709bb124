"""How the verbs that watch come to an end: after a time, by a signal, by Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

__all__ = ["INTERRUPTED", "stopped_after", "stopped_by_signals"]

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


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
