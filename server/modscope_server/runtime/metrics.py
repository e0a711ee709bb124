"""Scalars that the loop reports by scope.step, with as much of their history as is kept."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

__all__ = ["Metric", "Metrics", "Point"]

_LOG = logging.getLogger("modscope_server")
_MOST_POINTS = 1024
_MOST_NAMES = 64
_LONGEST_NAME = 256


class Point(NamedTuple):
    """A reported value."""

    step: int
    """step_count when it was reported: the iteration that it ends."""
    value: float

    def number(self) -> float:
        """The value."""
        return self.value


class Metric(NamedTuple):
    """A reported scalar."""

    name: str
    points: tuple[Point, ...]
    """Oldest first."""


class _Arriving:
    """A value on its way from an accelerator; the training thread waits for nothing."""

    __slots__ = ("_event", "_host", "step")

    def __init__(self, step: int, tensor: torch.Tensor) -> None:
        self.step = step
        try:
            self._host = torch.empty((), dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
        except (RuntimeError, NotImplementedError):
            # Without memory that a device can copy into by itself, a copy stays there until it is read.
            self._host = tensor.clone()
        self._event = torch.get_device_module(tensor.device).Event()
        self._event.record()

    def ready(self) -> bool:
        """Whether the value is here."""
        return bool(self._event.query())

    def wait(self) -> None:
        """Wait until the value is here."""
        with contextlib.suppress(RuntimeError):
            self._event.synchronize()

    def point(self) -> Point:
        """The value, which is here."""
        return Point(self.step, float(self._host))

    def number(self) -> float:
        """The value, waited for. Raises RuntimeError where the device has lost it."""
        self.wait()
        return float(self._host)


class _History:
    """The values of one name: those that are here, then those that are on their way."""

    __slots__ = ("arriving", "points")

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=_MOST_POINTS)
        self.arriving: deque[_Arriving] = deque(maxlen=_MOST_POINTS)

    def add(self, value: Point | _Arriving) -> None:
        if isinstance(value, Point):
            # Only a name that is reported from two devices waits, to keep the order.
            for arriving in self.arriving:
                arriving.wait()
            self.settle()
            self.points.append(value)
        else:
            self.settle()
            self.arriving.append(value)

    def settle(self) -> None:
        """Take in what has come. A value that its device has lost is left out."""
        with contextlib.suppress(RuntimeError):
            while self.arriving and self.arriving[0].ready():
                self.points.append(self.arriving.popleft().point())


class Metrics:
    """What was reported, by name. The training thread reports, others read.

    Args:
        told: is told of each value that is kept, with its name and as the loop has given it, in the
            thread that reports. It never raises.
    """

    def __init__(self, told: Callable[[str, Point | _Arriving, Any], None] | None = None) -> None:
        self._told = told
        self._mutex = threading.Lock()
        self._histories: dict[str, _History] = {}
        self._left_out: dict[str, None] = {}
        self._bad: set[str] = set()

    def report(self, step: int, values: Mapping[str, Any]) -> None:
        """Keep these values as those of an iteration. Never raises; a bad value is logged once for its name.

        A value is a number, or a tensor of one element. From an accelerator it is copied beside the
        training thread, which does not wait for it.
        """
        for name, value in values.items():
            try:
                taken = _taken(step, name, value)
                with self._mutex:
                    history = self._history(name)
                    if history is not None:
                        history.add(taken)
                if history is not None and self._told is not None:
                    self._told(name, taken, value)
            except Exception as error:
                self._refuse(name, error)

    def latest(self, name: str) -> float | None:
        """The last value of that name, waited for; None where there is none."""
        self._wait_for(name)
        with self._mutex:
            history = self._histories.get(name)
            return history.points[-1].value if history and history.points else None

    def history(self, most: int) -> list[Metric]:
        """The last `most` values of each name, all that are kept where it is negative, by name."""
        self._wait_for()
        with self._mutex:
            found = {name: tuple(history.points) for name, history in self._histories.items()}
        return [
            Metric(name, points[max(0, len(points) - most) :] if most >= 0 else points)
            for name, points in sorted(found.items())
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was reported and is not kept."""
        notes = []
        with self._mutex:
            if self._left_out:
                first = ", ".join(map(repr, list(self._left_out)[:3]))
                notes.append(
                    f"{_MOST_NAMES} names of metrics are kept, as many as there may be; "
                    f"left out are {first}{' and others' if len(self._left_out) > 3 else ''}"
                )
            if self._bad:
                names = ", ".join(map(repr, sorted(self._bad)[:3]))
                notes.append(f"reported as metrics, but no numbers nor tensors of one element: {names}")
        return tuple(notes)

    def _wait_for(self, *names: str) -> None:
        """Wait for what is on its way, of these names or all; not under the lock, which the loop takes."""
        with self._mutex:
            histories = [
                self._histories[name] for name in names or self._histories if name in self._histories
            ]
            arriving = [value for history in histories for value in history.arriving]
        if arriving:
            for value in arriving:
                value.wait()
            with self._mutex:
                for history in histories:
                    history.settle()

    def _history(self, name: str) -> _History | None:
        history = self._histories.get(name)
        if history is None and len(self._histories) < _MOST_NAMES:
            history = self._histories[name] = _History()
        elif history is None and len(self._left_out) <= _MOST_NAMES:
            self._left_out[name] = None
        return history

    def _refuse(self, name: object, error: Exception) -> None:
        shown = str(name)[:_LONGEST_NAME]
        with self._mutex:
            news = shown not in self._bad and len(self._bad) < _MOST_NAMES
            self._bad.update([shown] if news else ())
        if news:
            _LOG.warning("scope.step: %s is not kept: %s", shown, error)


def _taken(step: int, name: object, value: Any) -> Point | _Arriving:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise ValueError(f"a metric has a name of 1 to {_LONGEST_NAME} characters")
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(f"a tensor of shape {tuple(value.shape)} and {value.dtype} is no single number")
        value = value.detach().reshape(())
        if value.device.type not in ("cpu", "meta"):
            return _Arriving(step, value)
        value = value.item()
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{type(value).__name__} is no number")
    return Point(step, float(value))
