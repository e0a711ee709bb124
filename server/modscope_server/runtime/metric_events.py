"""Reported scalars, told to those who watch them."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

import torch

from modscope.tensor import TensorData
from modscope_server.inspection.records import HistogramRecord, StatsRecord
from modscope_server.inspection.statistics import Reduction, reduce
from modscope_server.inspection.tensors import to_data
from modscope_server.runtime.capture import Sink
from modscope_server.runtime.drafts import Draft, DraftValue
from modscope_server.runtime.tally import MOST_FAULTS, Tally, Told

__all__ = ["METRIC", "MetricEvents", "Reported"]

METRIC = "metric"
"""The kind of these events."""

_ASKED_FOR = HistogramRecord((), ())
"""Stands for a histogram that is made when somebody reads it."""
_LOG = logging.getLogger("modscope_server")


class Reported(Protocol):
    """A reported value, perhaps still on its way from an accelerator."""

    @property
    def step(self) -> int:
        """The iteration that it ends."""

    def number(self) -> float:
        """The value, waited for."""


class MetricEvents:
    """Tells subscribers of each scalar that is kept, on the training thread, which waits for nothing."""

    def __init__(self) -> None:
        self._sinks: tuple[tuple[Sink, str, Told], ...] = ()
        self._faults = 0
        self.fault = ""
        """Why nothing is told any more; empty while it is."""

    def add(self, sink: Sink, model: str, tally: Tally) -> None:
        """Tell that subscriber, as of that model; `tally` counts it."""
        if not self._sinks:
            self._faults, self.fault = 0, ""
        self._sinks = (*self._sinks, (sink, model, tally.of(METRIC, "")))

    def remove(self, sink: Sink) -> None:
        """Tell it no more. Idempotent."""
        self._sinks = tuple(one for one in self._sinks if one[0] is not sink)

    def reported(self, name: str, taken: Reported, value: Any) -> None:
        """A scalar was reported. `value`: as the loop has given it. Never raises."""
        if not self._sinks or self.fault:
            return
        try:
            self._tell(name, taken, value)
        except Exception as error:
            self._faults += 1
            _LOG.error("modscope cannot tell of metric %r; training goes on", name, exc_info=error)
            if self._faults >= MOST_FAULTS:
                self.fault = (
                    f"switched off after {MOST_FAULTS} faults, the last: {type(error).__name__}: {error}"
                )

    def _tell(self, name: str, taken: Reported, value: Any) -> None:
        moment = time.time()
        drafts: dict[tuple[str, str], Draft] = {}
        for sink, model, counter in self._sinks:
            if not sink.window.admits(taken.step, 0, True):
                continue
            key = model, sink.form.payload
            if key not in drafts:
                told = _draft_value(sink.form.payload, taken, value)
                drafts[key] = Draft(taken.step, model, name, name, "", METRIC, 0, False, moment, (told,))
            counter.count(taken.step)
            sink.publish(drafts[key])


def _draft_value(payload: str, taken: Reported, value: Any) -> DraftValue:
    reduction = copy = None
    if payload == "tensor":
        if isinstance(value, torch.Tensor):
            copy = _wide(value.detach().reshape(()))
        else:
            copy = to_data(torch.tensor(taken.number(), dtype=torch.float64, device="cpu"))
    elif payload != "none":
        reduction = _LateReduction.of(taken, histogram=payload == "histogram")
    return DraftValue("metric", "", (), "float64", reduction, copy)


def _wide(scalar: torch.Tensor) -> torch.Tensor | TensorData:
    """A copy in float64, on its device: nothing waits for it here."""
    try:
        wide = scalar.to(torch.float64, copy=not scalar.is_cpu)
    except TypeError:
        # Some devices have no float64, and then no way to it but through the host.
        wide = scalar.cpu().to(torch.float64)
    return to_data(wide) if wide.is_cpu else wide


class _LateReduction(Reduction):
    """The statistics of one number, taken by whoever asks for them: that one may wait until it is here."""

    taken: Reported

    @classmethod
    def of(cls, taken: Reported, *, histogram: bool) -> _LateReduction:
        """The reduction of a reported value."""
        made = cls(1, False, (), _ASKED_FOR if histogram else None)
        made.taken = taken
        return made

    @property
    def is_here(self) -> bool:
        """No: nothing but a reader may wait for it."""
        return False

    def resolve(self) -> StatsRecord:
        """The statistics; all but their count is missing where a device has lost the number."""
        try:
            return self._now().resolve()
        except RuntimeError:
            return StatsRecord(1, None, None, None, None, None, 0, 0, 0)

    def histogram(self) -> HistogramRecord | None:
        """The histogram, where it was asked for and the number is finite."""
        try:
            return self._now().histogram()
        except RuntimeError:
            return None

    def _now(self) -> Reduction:
        number = torch.tensor(self.taken.number(), dtype=torch.float64, device="cpu")
        return reduce(number, histogram=self.buckets is not None)
