"""One call in progress, as the servicers see it: who asks, how long they wait, whether they are gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modscope_server.runtime.safepoint import Caller
from modscope_server.services.auth import Role

__all__ = ["Call"]

_FOREVER = 1e8


class Call:
    """A servicer's view of an rpc."""

    __slots__ = ("_context", "role")

    def __init__(self, context: Any, role: Role) -> None:
        self._context = context
        self.role = role

    @property
    def who(self) -> str:
        """Role of the caller's token, and where the call comes from."""
        return f"{self.role.value} {self._context.peer()}"

    @property
    def caller(self) -> Caller | None:
        """The thread that the client says it calls from."""
        for key, value in self._context.invocation_metadata():
            if key == "modscope-caller":
                return _caller(value)
        return None

    @property
    def timeout(self) -> float | None:
        """Seconds after which a request that still waits is withdrawn, so that the caller hears why."""
        remaining: float = self._context.time_remaining()
        return None if remaining > _FOREVER else remaining - min(0.3, 0.3 * remaining)

    def is_set(self) -> bool:
        """Whether the caller is gone: cancelled, broken off, or past the deadline."""
        return not self._context.is_active()

    def when_gone(self, wake: Callable[[], None]) -> None:
        """Call `wake` when the rpc ends, at once where it has ended."""
        if not self._context.add_callback(wake):
            wake()


def _caller(value: str | bytes) -> Caller | None:
    """The caller that a client names; None for what names none."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    boot_id, _, thread = text.partition("/")
    pid, _, native_id = thread.partition("/")
    numbers = (pid, native_id)
    if not boot_id or not all(number.isdecimal() and len(number) < 20 for number in numbers):
        return None
    return Caller(boot_id, int(pid), int(native_id))
