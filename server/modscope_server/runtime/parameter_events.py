"""Parameters and their gradients as iterations leave them, told to those who watch them.

A parameter that an optimizer holds is told each time that this optimizer has stepped: its gradient is then
the one that was used, unscaled and clipped, and its value the new one. A parameter that none holds is told
when its iteration is over. No module has a hook for any of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import torch
from torch.optim.optimizer import Optimizer

from modscope_server.inspection.structure import Located
from modscope_server.inspection.tensors import has_grad, unreadable_reason
from modscope_server.runtime.boundaries import Boundaries, Place
from modscope_server.runtime.capture import Sink
from modscope_server.runtime.captured import Form, captured
from modscope_server.runtime.drafts import Draft, DraftValue
from modscope_server.runtime.modes import neutral_modes
from modscope_server.runtime.parameter_targets import Reader, Selection, Target, targets
from modscope_server.runtime.sensors import in_backward
from modscope_server.runtime.tally import MOST_FAULTS, Tally

__all__ = ["PARAMETER_KINDS", "ParameterEvents"]

PARAMETER_KINDS = ("gradient", "parameter")
"""What is told of a parameter, in this order."""

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_LOG = logging.getLogger("modscope_server")
_FROZEN = "no gradient: the parameter is frozen (requires_grad is False)"
_NONE = "no gradient: nothing was back-propagated to the parameter, or its gradient was cleared"
_LATE = "no gradient: the end of its iteration was noticed when the next one began; it is cleared by then"

_Values: TypeAlias = dict[Form, DraftValue]


class _Ready(NamedTuple):
    """What was captured before it was known that its iteration is complete."""

    target: Target
    kind: str
    values: _Values


class _Iteration:
    """What is told of one iteration, and what has been."""

    __slots__ = ("ended", "held_back", "ready", "step", "targets", "told")

    def __init__(self, step: int, found: Mapping[int, Target]) -> None:
        self.step = step
        self.targets = found
        self.told: set[int] = set()
        """The tensors of which all was told that there is."""
        self.ready: list[_Ready] = []
        """Captured inside backward."""
        self.held_back: dict[int, _Values] = {}
        """Gradients of parameters that no optimizer is known to hold, by their tensors."""
        self.ended = False


class ParameterEvents:
    """Tells subscribers what becomes of parameters. It works on the training thread, at its boundaries."""

    def __init__(self) -> None:
        self._selections: tuple[Selection, ...] = ()
        self._boundaries: Boundaries | None = None
        self._optimizers: Callable[[], Iterable[Optimizer]] = tuple
        self._iteration = _Iteration(-1, {})
        # Inside backward several threads of autograd may come at once.
        self._working = threading.RLock()
        self._faults = 0
        self.fault = ""
        """Why nothing is told any more; empty while it is."""

    def follow(self, boundaries: Boundaries, optimizers: Callable[[], Iterable[Optimizer]]) -> None:
        """Learn of iterations there, while anybody watches; `optimizers` gives those that are known."""
        self._boundaries = boundaries
        self._optimizers = optimizers

    def add(self, sink: Sink, model: str, modules: Iterable[Located], step: int, tally: Tally) -> bool:
        """Tell a subscriber of the own parameters of these modules; False where they have none.

        `step`: step_count now; the iteration that this ends is not told any more. `tally` counts what it
        is told.
        """
        selection = Selection(sink, model, modules, step, tally)
        found = [reader for _, reader in selection.parameters()]
        for kind in PARAMETER_KINDS:
            if kind in sink.kinds:
                for reader in found:
                    tally.of(kind, reader.path)
        if not self._selections:
            self._faults, self.fault = 0, ""
            if self._boundaries is not None:
                self._boundaries.add_follower(self)
        self._selections = (*self._selections, selection)
        return bool(found)

    def remove(self, sink: Sink) -> None:
        """Tell that subscriber no more. Idempotent."""
        self._selections = tuple(one for one in self._selections if one.sink is not sink)
        if not self._selections and self._boundaries is not None:
            self._boundaries.remove_follower(self)
            self._iteration = _Iteration(-1, {})

    # On the training thread; `updated` also on a thread of autograd.

    def updated(self, optimizer: Optimizer, step: int) -> None:
        """An optimizer has stepped: tell of the parameters that it holds."""
        with self._guarded():
            iteration = self._at(step)
            if iteration.targets:
                inside = in_backward()
                for parameter in _held_by((optimizer,)):
                    target = iteration.targets.get(id(parameter))
                    if target is not None:
                        self._updated(iteration, target, inside)

    def boundary(self, step: int, place: Place) -> None:
        """An iteration is complete: tell of the parameters that no optimizer holds."""
        with self._guarded():
            iteration = self._at(step)
            self._tell_ready(iteration)
            if place == "optimizer":
                # The loop may go on: to the step of another optimizer, to an average of the weights.
                self._hold_back(iteration)
            else:
                self._end(iteration, late=place == "forward")

    def _at(self, step: int) -> _Iteration:
        if self._iteration.step != step:
            last, self._iteration = self._iteration, _Iteration(step, targets(self._selections, step))
            self._end(last, late=True)
        return self._iteration

    def _updated(self, iteration: _Iteration, target: Target, inside: bool) -> None:
        if id(target.tensor) in iteration.told:
            return
        iteration.told.add(id(target.tensor))
        for kind in PARAMETER_KINDS:
            if inside:
                iteration.ready.append(_Ready(target, kind, self._ahead(target, kind)))
            else:
                self._tell(target, kind, iteration.step)

    def _tell_ready(self, iteration: _Iteration) -> None:
        ready, iteration.ready = iteration.ready, []
        for target, kind, values in ready:
            self._tell(target, kind, iteration.step, values)

    def _hold_back(self, iteration: _Iteration) -> None:
        for key, target in self._loose(iteration):
            if key not in iteration.held_back and has_grad(target.tensor):
                iteration.held_back[key] = self._ahead(target, "gradient")

    def _end(self, iteration: _Iteration, *, late: bool) -> None:
        """Tell of the parameters that no optimizer holds; `late`: their gradients may be gone."""
        self._tell_ready(iteration)
        if iteration.ended:
            return
        iteration.ended = True
        for key, target in self._loose(iteration):
            iteration.told.add(key)
            for kind in PARAMETER_KINDS:
                held_back = iteration.held_back.get(key) if kind == "gradient" else None
                self._tell(target, kind, iteration.step, held_back, late=late)
        iteration.held_back = {}
        for _, target in self._left(iteration):
            for kind in PARAMETER_KINDS:
                for reader in _readers(target, kind):
                    reader.tally.of(kind, reader.path).missed += 1

    def _loose(self, iteration: _Iteration) -> list[tuple[int, Target]]:
        """The parameters that were not told, and that no known optimizer holds."""
        left = self._left(iteration)
        held = {id(parameter) for parameter in _held_by(self._optimizers())} if left else ()
        return [(key, target) for key, target in left if key not in held]

    def _left(self, iteration: _Iteration) -> list[tuple[int, Target]]:
        """The parameters that were not told."""
        return [item for item in iteration.targets.items() if item[0] not in iteration.told]

    def _ahead(self, target: Target, kind: str) -> _Values:
        """The value as it is now, for whoever may want that iteration."""
        readers = _readers(target, kind)
        return self._captured(target.tensor, kind, readers) if readers else {}

    def _tell(
        self, target: Target, kind: str, step: int, values: _Values | None = None, *, late: bool = False
    ) -> None:
        readers = [
            reader for reader in _readers(target, kind) if reader.sink.window.admits(step, 0, training=True)
        ]
        if not readers:
            return
        if values is None:
            values = self._captured(target.tensor, kind, readers, late=late)
        moment = time.time()
        drafts: dict[tuple[Form, str], Draft] = {}
        for reader in readers:
            sink, model, path, raw_path, type, tally = reader
            value = values.get(sink.form)
            if value is None:
                continue
            draft = drafts.get((sink.form, path))
            if draft is None:
                draft = drafts[sink.form, path] = Draft(
                    step, model, path, raw_path, type, kind, 0, False, moment, (value,)
                )
            tally.of(kind, path).count(step, value.note)
            sink.publish(draft)

    def _captured(
        self, parameter: torch.Tensor, kind: str, readers: Sequence[Reader], *, late: bool = False
    ) -> _Values:
        """The value in the forms that they want; a note alone where it cannot be had."""
        forms = {reader.sink.form for reader in readers}
        try:
            tensor, note = _gradient(parameter, late) if kind == "gradient" else (parameter, "")
            if tensor is not None and (type(tensor) in _PLAIN or not unreadable_reason(tensor)):
                # Another tensor object each time: what changes through `.data` is seen by no version.
                with torch._C.DisableTorchFunctionSubclass():
                    tensor = tensor.detach()
            return captured(kind, "", tensor, forms, note)
        except Exception as error:
            _LOG.error("modscope cannot tell of %r; training goes on", readers[0].path, exc_info=error)
            told = [reader.tally.of(kind, reader.path) for reader in readers]
            for one in told:
                one.fault(error)
            return captured(kind, "", None, forms, told[0].reason)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A fault of ours never reaches the loop; after three of them nothing is told any more."""
        try:
            with self._working, neutral_modes():
                yield
        except Exception as error:
            self._faults += 1
            _LOG.error("modscope failed at a boundary; training goes on", exc_info=error)
            if self._faults >= MOST_FAULTS:
                self.fault = (
                    f"switched off after {MOST_FAULTS} faults, the last: {type(error).__name__}: {error}"
                )
                if self._boundaries is not None:
                    self._boundaries.remove_follower(self)


def _readers(target: Target, kind: str) -> list[Reader]:
    """Those who watch that kind, where it has not been faulty."""
    return [
        reader
        for reader in target.readers
        if kind in reader.sink.kinds and not reader.tally.of(kind, reader.path).is_off
    ]


def _gradient(parameter: torch.Tensor, late: bool) -> tuple[torch.Tensor | None, str]:
    """The gradient; None and why, where there is none."""
    if late:
        return None, _LATE
    if has_grad(parameter):
        return parameter.grad, ""
    return None, _NONE if parameter.requires_grad else _FROZEN


def _held_by(optimizers: Iterable[Optimizer]) -> Iterator[torch.Tensor]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]
