"""The handle that attach gives: where the server is, a step to mark, an end."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from modscope_server.fork import forget_in_children

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DisabledScope", "Scope"]

_log = logging.getLogger("modscope_server")
_open: set[Scope] = set()
_dead: list[object] = []


class Backend(Protocol):
    """What stands behind a scope while it is open."""

    address: str
    token: str
    viewer_token: str

    @property
    def step_count(self) -> int: ...
    def step(self, metrics: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


class Scope:
    """A served model, until it is closed: by `close`, at the end of a `with`, or as the interpreter exits.

    After attach nothing here raises into the training loop, and in a forked child everything here
    does nothing.
    """

    def __init__(self, backend: Backend | None) -> None:
        self._backend = backend
        self._steps = 0
        self.address = backend.address if backend else ""
        """Where clients connect: `unix:/path`, or `host:port` with the real port."""
        self.token = backend.token if backend else ""
        """The operator token: reads, and changes where the scope is writable."""
        self.viewer_token = backend.viewer_token if backend else ""
        """The viewer token: reads only."""
        if backend is not None:
            _open.add(self)
            atexit.register(self.close)
            forget_in_children(self)

    @property
    def step_count(self) -> int:
        """Completed training iterations since attach."""
        backend = self._backend
        return self._steps if backend is None else backend.step_count

    def step(self, loss: Any = None, **metrics: Any) -> None:
        """Mark the end of an iteration, and report scalars.

        Only a loop without a torch Optimizer needs it; after an optimizer's step it does not count
        twice. `loss` and `metrics` are numbers, or tensors of one element; nothing holds on to them,
        and no accelerator is waited for. `run status` shows them, and breaks can be set on them.
        """
        backend = self._backend
        if backend is None:
            return
        try:
            backend.step(metrics if loss is None else {"loss": loss, **metrics})
        except Exception:
            _log.exception("scope.step failed; training goes on")

    def close(self) -> None:
        """Stop serving and take every hook off. Idempotent."""
        backend, self._backend = self._backend, None
        if backend is None:
            return
        _open.discard(self)
        atexit.unregister(self.close)
        try:
            self._steps = backend.step_count
            backend.close()
        except Exception:
            _log.exception("scope.close failed; training goes on")

    def forget(self) -> None:
        """Become inert in a forked child, whose threads and connections are not there."""
        backend, self._backend = self._backend, None
        _open.discard(self)
        if backend is not None:
            # gRPC's objects wait for threads when they are freed, and the child has none of them.
            _dead.append(backend)
            backend.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self.address if self._backend is not None else "closed"
        return f"<{type(self).__name__} {state}>"


class DisabledScope(Scope):
    """What attach gives under MODSCOPE_DISABLE=1: the same methods, and nothing behind them."""

    def __init__(self) -> None:
        super().__init__(None)
