"""One hook that changes values, at one module: when it acts, and why it does not."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from modscope_server.inspection.alterations import Alteration, Unfit, altered
from modscope_server.inspection.places import NoSuchPlace, only_key, replaced, tensor_at_key
from modscope_server.inspection.records import Located
from modscope_server.runtime.calls import stands_for
from modscope_server.runtime.module_hooks import let_observers_follow
from modscope_server.runtime.sensors import in_backward
from modscope_server.runtime.stance import inside_compiled_code
from modscope_server.runtime.uncopied import Uncopied

__all__ = ["CALLED_BY_TORCH", "Site", "SiteState", "State", "Window"]

State = Literal["waiting", "acting", "not acting", "ended"]

_LOG = logging.getLogger("modscope_server")
_MOST_FAULTS = 3
_REMEMBERED = 4096
"""Calls of one step whose recomputation finds out what was done in them."""


class SiteState(NamedTuple):
    """What a site does now, and why."""

    state: State
    note: str = ""


@dataclass(slots=True)
class Window:
    """When an intervention acts, for all its sites."""

    calls: int
    """How often at each site; 0 for no limit."""
    start: int | None
    stop: int | None
    step_count: Callable[[], int]
    ended: str = ""
    """Why it acts no more."""

    def is_open(self, step: int) -> bool:
        """Whether it acts at that step; a step that is too late ends it."""
        if self.stop is not None and step >= self.stop and not self.ended:
            self.ended = f"step {self.stop} has come, at which it was to stop"
        return not self.ended and (self.start is None or step >= self.start)


class _Hook(Uncopied):
    """A callable on the module: harmless when copied, pickled or forked, and it never raises."""

    __slots__ = ("_pid", "_site")

    def __init__(self, site: Site) -> None:
        self._site = site
        self._pid = os.getpid()

    def __call__(self, module: nn.Module, *rest: Any) -> Any:
        if torch.compiler.is_compiling() or inside_compiled_code():
            return None
        site = self._site
        if not stands_for(module, site.module()) or os.getpid() != self._pid:
            return None
        try:
            return site.act(rest)
        except Exception as error:
            site.fault(error)
            return None


CALLED_BY_TORCH = (_Hook.__call__,)
"""What torch calls; where that is compiled code, it finds nothing to do."""


class Site:
    """A module at which an intervention acts.

    A forward that activation checkpointing recomputes gets what its first run got, whatever has ended
    since: else its gradient would be that of another model. The last call of a step that was not yet
    recomputed is taken for the one that is.
    """

    def __init__(self, located: Located, hook: str, how: Alteration, key: str | None, window: Window) -> None:
        self.module = weakref.ref(located.module)
        self.path, self.raw_path = located.path, located.raw_path
        self.calls = 0
        self.called_at: int | None = None
        """step_count at the last call."""
        self.applied = 0
        self.applied_at: int | None = None
        """step_count when it last changed a value."""
        self._hook = hook
        self._how = how
        self._key = key
        self._window = window
        self._handle: RemovableHandle | None = None
        self._problem = ""
        self._faults = 0
        self._decided: deque[int | None] = deque(maxlen=_REMEMBERED)
        """Of each call in the last step: the number of the application, None for none."""
        self._mutex = threading.Lock()

    @property
    def done(self) -> bool:
        """Whether it has acted as often as it was asked to."""
        return bool(self._window.calls) and self.applied >= self._window.calls

    @property
    def unseen(self) -> bool:
        """Whether it was not called in the step before this one, nor since."""
        return self.called_at is None or self.called_at < self._window.step_count() - 1

    def attach(self) -> None:
        """Put the hook on: behind those that are there, before those that observe."""
        module = self.module()
        if module is None or isinstance(module, torch.jit.ScriptModule):
            self._problem = "a ScriptModule takes no hooks"
            return
        if self._hook == "forward_pre":
            self._handle = module.register_forward_pre_hook(_Hook(self), with_kwargs=True)
            let_observers_follow(module._forward_pre_hooks)
        else:
            self._handle = module.register_forward_hook(_Hook(self))
            let_observers_follow(module._forward_hooks)

    def detach(self) -> None:
        """Take the hook off. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()

    @property
    def attached(self) -> bool:
        """Whether the hook is on the module."""
        return self._handle is not None

    def state(self, *, early: bool) -> SiteState:
        """What it does now; `early`: it was made so recently that it may not have been called yet.

        Why a module is never called is for others to say: there is no note then.
        """
        step = self._window.step_count()
        if self.done:
            return SiteState("ended")
        if self._problem:
            return SiteState("not acting", self._problem)
        if self._window.start is not None and step < self._window.start:
            return SiteState("waiting", f"it begins at step {self._window.start}")
        if self.called_at is None:
            not_yet = SiteState("waiting", "the module has not been called yet")
            return not_yet if early else SiteState("not acting")
        if self.unseen:
            return SiteState("not acting", f"the module was called last at step {self.called_at}")
        return SiteState("acting")

    def act(self, rest: tuple[Any, ...]) -> Any:
        """What the hook gives: the changed value, or None where it stays as it is."""
        if in_backward() and self._decided:
            number = self._decided.pop()
            return None if number is None else self._changed(rest, number)
        number = self._decide()
        if number is None:
            return None
        try:
            value = self._changed(rest, number)
        except BaseException as error:
            with self._mutex:
                self.applied -= 1
                self._decided[-1] = None
            if not isinstance(error, (Unfit, NoSuchPlace)):
                raise
            self._problem = str(error)
            return None
        self._problem, self.applied_at = "", self.called_at
        return value

    def fault(self, error: Exception) -> None:
        """Count a fault of ours; after three it acts no more."""
        self._faults += 1
        self._problem = f"a fault of modscope's own: {type(error).__name__}: {error}"
        _LOG.error("an intervention failed at %r; training goes on", self.path, exc_info=error)
        if self._faults >= _MOST_FAULTS:
            self._window.ended = self._window.ended or self._problem

    def _decide(self) -> int | None:
        """The number of the application that this call is, None where it is none; remembered."""
        step = self._window.step_count()
        with self._mutex:
            if self.called_at != step:
                self._decided.clear()
            self.calls += 1
            self.called_at = step
            if not self._window.is_open(step) or self.done:
                self._decided.append(None)
                if self._window.ended and not any(number is not None for number in self._decided):
                    self.detach()
                return None
            self.applied += 1
            self._decided.append(self.applied - 1)
            return self.applied - 1

    def _changed(self, rest: tuple[Any, ...], number: int) -> Any:
        if self._hook == "forward":
            return self._value(rest[-1], number)
        args, kwargs = rest
        given = self._value({**dict(enumerate(args)), **kwargs}, number)
        return tuple(given[index] for index in range(len(args))), {name: given[name] for name in kwargs}

    def _value(self, value: Any, number: int) -> Any:
        key = only_key(value) if self._key is None else self._key
        return replaced(value, key, altered(tensor_at_key(value, key), self._how, number))
