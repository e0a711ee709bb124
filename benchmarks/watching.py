"""A block of steps of a loop: without modscope, watched by readers, or under something else."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

import modscope_server
from benchmarks.idle_step import without_global_hooks
from benchmarks.processes import Child
from benchmarks.watch_models import Loop
from modscope_server import Limits

__all__ = ["Peer", "Watched", "alone", "attached", "one_thread", "under", "watch_block", "watched"]

Peer = Callable[[Loop], AbstractContextManager[Callable[[], None]]]
"""Puts something else on the loop's model; gives what is to be called after each step."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch with one thread: the trainer and its reader have a core each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def attached(loop: Loop, limits: Limits | None = None) -> Iterator[modscope_server.Scope]:
    """The loop's model served, without a word on standard error."""
    with (
        contextlib.redirect_stderr(io.StringIO()),
        modscope_server.attach(loop.model, optimizer=loop.optimizer, limits=limits) as scope,
    ):
        yield scope


def alone(loop: Loop, steps: int) -> float:
    """Seconds a step as in a process that never attached."""
    with without_global_hooks():
        return loop.block(steps)


def under(loop: Loop, steps: int, peer: Peer) -> float:
    """Seconds a step with something else on the model."""
    with without_global_hooks(), peer(loop) as after_step:
        return loop.block(steps, after_step)


class Watched(NamedTuple):
    """A block that was watched."""

    seconds: float
    """A step."""
    published: int
    dropped: int


def watched(loop: Loop, steps: int, reader: Child, options: dict[str, Any]) -> float:
    """Seconds a step while the reader watches, and reads all that comes."""
    seconds, _, dropped = watch_block(loop, steps, reader, options)
    assert not dropped
    return seconds


def watch_block(
    loop: Loop,
    steps: int,
    reader: Child,
    options: dict[str, Any],
    *,
    most: int | None = None,
    limits: Limits | None = None,
) -> Watched:
    """Steps while the reader watches; one that stops reading after `most` events, where given.

    Each event that was published has come or was counted as dropped, else the measurement fails.
    """
    with attached(loop, limits):
        assert reader.ask("watch", options, most) > 0
        seconds = loop.block(steps)
        told = reader.ask("stop")
    assert told["delivered"] > 0, told
    assert told["published"] == told["delivered"] + told["dropped"], told
    return Watched(seconds, told["published"], told["dropped"])
