"""Waiting for a pause: what the statuses that come mean, and how long is left. Knows no channel."""

from __future__ import annotations

import time

from modscope.v1 import run_service_pb2
from modscope_client import run_control
from modscope_client.errors import DeadlineExceeded, Internal
from modscope_client.types import RunStatus

__all__ = ["AGAIN_SECONDS", "Waiting"]

AGAIN_SECONDS = 0.1
"""Between the end of one stream and the begin of the next."""

_LONGEST_STREAM = 3600.0


class Waiting:
    """A wait that goes over as many streams as it takes.

    seconds: how long it may last; where `renewed_by_steps`, how long it may last without a step.
    past_training: whether it goes on where the training thread has ended; one that has not begun yet is
    always waited for. outcome: what the error of a wait that is over tells besides.
    """

    def __init__(
        self,
        seconds: float | None,
        *,
        renewed_by_steps: bool = False,
        past_training: bool = False,
        outcome: str = "",
    ) -> None:
        self._seconds = seconds
        self._since = time.monotonic()
        self._renewed_by_steps = renewed_by_steps
        self._past_training = past_training
        self._outcome = outcome
        self._last: RunStatus | None = None

    @classmethod
    def for_pause(cls, seconds: float) -> Waiting:
        """For a pause that is withdrawn where it does not come."""
        return cls(seconds, past_training=True, outcome=", and the wish to pause it is withdrawn")

    @classmethod
    def for_steps(cls, seconds: float) -> Waiting:
        """For the pause after steps, each of which may take so long."""
        return cls(seconds, renewed_by_steps=True, outcome="; it will be after its steps")

    @property
    def done(self) -> bool:
        """Whether the last status ends the wait."""
        last = self._last
        if last is None:
            return False
        if last.state == "no_training":
            return last.step > 0 and not self._past_training
        return last.state == "paused"

    @property
    def status(self) -> RunStatus:
        """The last status."""
        if self._last is None:
            raise Internal("the wait for a pause was answered without a status")
        return self._last

    def take(self, message: run_service_pb2.WaitForPauseResponse) -> None:
        """A status has come."""
        self.see(run_control.run_status(message.status))

    def see(self, status: RunStatus) -> None:
        """A status has come."""
        if self._renewed_by_steps and (self._last is None or status.step != self._last.step):
            self._since = time.monotonic()
        self._last = status

    def left(self) -> float:
        """Seconds that the next stream may take. Raises DeadlineExceeded where none are left."""
        if self._seconds is None:
            return _LONGEST_STREAM
        left = self._since + self._seconds - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"the run is not paused after {self._seconds:g} s{self._without_step()}"
                f"{self._outcome}: {self._seen()}",
                reason="NO_SAFE_POINT",
                hint="allow more time with connect(timeout=...), or see whether the training still works",
            )
        return min(left, _LONGEST_STREAM)

    def _without_step(self) -> str:
        return " without a step" if self._renewed_by_steps else ""

    def _seen(self) -> str:
        if self._last is None:
            return "its server told nothing"
        return f"it is at step {self._last.step:,}, {self._last.doing or self._last.state.replace('_', ' ')}"
