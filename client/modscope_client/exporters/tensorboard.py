"""TensorBoard: statistics and reported metrics as scalars, histograms from the buckets of the events."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from modscope_client.exporters.naming import METRIC, STATS, metric_number, tag
from modscope_client.exporters.reported import Reported, ReportedPoint
from modscope_client.sinks import need

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modscope_client.sinks import Metrics, Watched
    from modscope_client.types import Event, ValueInfo

__all__ = ["TensorBoard"]

_FLUSH_SECONDS = 5.0
"""How long what was taken may wait before the file has it."""


class TensorBoard:
    """Writes one event file, with tensorboardX, into a folder.

    A watch that is armed again at an earlier step is of a run that has begun anew. It is written to a folder
    of its own below (`restart-1`): TensorBoard shows both, and neither hides points of the other.
    """

    serves = False

    def __init__(self, target: str) -> None:
        self.place = target
        """The folder."""
        self._writer: Any = None
        self._protos: Any = None
        self._last_step = -1
        self._restarts = 0
        self._reported = Reported()
        self._flushed = 0.0

    def open(self, watch: Watched) -> None:
        """Begin a file, or go on with the one that there is.

        Raises FailedPrecondition without tensorboardX.
        """
        if self._writer is not None:
            if watch.step >= self._last_step:
                return
            self._restarts += 1
            self.close()
        # Its SummaryWriter hands events to a thread, in which a full disk would go unnoticed.
        files = need("tensorboardX.event_file_writer", extra="tensorboard")
        self._protos = need("tensorboardX.proto.event_pb2", extra="tensorboard")
        folder = os.path.join(self.place, f"restart-{self._restarts}") if self._restarts else self.place
        os.makedirs(folder, exist_ok=True)
        suffix = f".{os.getpid()}.{time.monotonic_ns()}.modscope"
        self._writer = files.EventsWriter(os.path.join(folder, "events"), suffix)
        self._last_step = -1
        self._reported = Reported()

    def emit(self, event: Event) -> None:
        """Scalars and histograms of all its values, at its step and time."""
        self._last_step = max(self._last_step, event.step)
        if event.hook == METRIC:
            number = metric_number(event)
            if number is not None:
                self._report(self._reported.told(ReportedPoint(event.time, event.step, event.path, number)))
            return
        written = self._protos.Event(wall_time=event.time, step=event.step)
        for value in event.values:
            self._add(written.summary, tag(event, value), value)
        self._write(written)

    def metrics(self, metrics: Metrics) -> None:
        """Reported scalars as `reported/NAME`, each point once, whether an event or this tells it."""
        self._report(self._reported.kept(metrics.reported, time.time()))
        self._flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._report(self._reported.rest())
            self._writer.close()

    def _report(self, points: Iterable[ReportedPoint]) -> None:
        for point in points:
            written = self._protos.Event(wall_time=point.time, step=point.step)
            written.summary.value.add(tag=f"reported/{point.name}", simple_value=point.value)
            self._write(written)

    def _add(self, summary: Any, name: str, value: ValueInfo) -> None:
        stats, histogram = value.stats, value.histogram
        if stats is not None:
            for statistic in STATS:
                amount = getattr(stats, statistic)
                if amount is not None:
                    summary.value.add(tag=f"{name}/{statistic}", simple_value=amount)
        if histogram is not None and any(histogram.counts):
            drawn = summary.value.add(tag=f"{name}/histogram").histo
            drawn.num = sum(histogram.counts)
            drawn.min, drawn.max = histogram.edges[0], histogram.edges[-1]
            if stats is not None:
                drawn.min = drawn.min if stats.min is None else stats.min
                drawn.max = drawn.max if stats.max is None else stats.max
                drawn.sum = drawn.num * (stats.mean or 0.0)
                drawn.sum_squares = (stats.norm or 0.0) ** 2
            # TensorBoard knows right edges; the first bucket begins at `min`.
            drawn.bucket_limit.extend(histogram.edges[1:])
            drawn.bucket.extend(map(float, histogram.counts))

    def _write(self, written: Any) -> None:
        if written.summary.value:
            self._writer.write_event(written)
            self._flush()

    def _flush(self) -> None:
        now = time.monotonic()
        if now - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = now
