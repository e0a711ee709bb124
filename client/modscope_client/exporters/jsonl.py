"""JSON lines: each event as `modscope watch -o jsonl` prints it, appended to a file."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from modscope_client.plain import json_line

if TYPE_CHECKING:
    from modscope_client.sinks import Metrics, Watched
    from modscope_client.types import Event

__all__ = ["JsonLines"]


class JsonLines:
    """Appends events to a file. What is known beside the events is not written."""

    serves = False

    def __init__(self, target: str) -> None:
        self.place = target
        """The file."""
        self._file: IO[str] | None = None

    def open(self, watch: Watched) -> None:
        """Open the file, unless it is open."""
        if self._file is None:
            # By lines: who follows the file sees each event at once, and whole.
            self._file = open(self.place, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close

    def emit(self, event: Event) -> None:
        """One line."""
        assert self._file is not None
        self._file.write(json_line(event))

    def metrics(self, metrics: Metrics) -> None:
        """Nothing: a line is an event."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
