"""Watching a model from an event loop: the twin of modscope_client/subscription.py."""

from __future__ import annotations

import contextlib
from types import TracebackType

from modscope.v1 import hook_service_pb2
from modscope.wire import Frame
from modscope_client.aio.calls import Calls, Stream
from modscope_client.errors import ModscopeError, ResourceExhausted
from modscope_client.rpcs import STOP_WATCH, WATCH
from modscope_client.subscription import Progression, Watching, ahead_of, is_kept
from modscope_client.types import Event

__all__ = ["Subscription"]


class Subscription(Watching):
    """A watch: armed when its `async with` is entered, its hooks gone when it is left.

    Iterating gives each Event as it comes; it ends after `stop`, and raises Unavailable where the server
    closes or the connection breaks, ResourceExhausted where overflow "disconnect" has ended it. Iterate in
    one task; `stop` may be called in any of the same loop.
    """

    def __init__(self, calls: Calls, request: hook_service_pb2.WatchRequest) -> None:
        self._calls = calls
        self.request = request
        """What is asked for."""
        self._own: Calls | None = None
        self._stream: Stream[Frame[hook_service_pb2.WatchResponse]] | None = None
        self._left = False
        self._broken = False

    async def __aenter__(self) -> Subscription:
        """Arm it: from now on every event is delivered or counted as dropped.

        Raises NotFound where nothing matches or the watch to resume is gone, DeadlineExceeded where the
        model comes to no step boundary.
        """
        if self._own is not None:
            raise RuntimeError("a watch is entered once: call watch() anew")
        self._own = Calls(self._calls.endpoint, self._calls.timeout, ahead=ahead_of(self.request))
        try:
            self._stream = await self._own.watch(WATCH, self.request)
            self._progression = Progression.of(self._stream.first, self._own.memory)
        except BaseException:
            await self._own.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        progression = self._armed()
        while not progression.ready:
            if self._left or self._stream is None:
                raise StopAsyncIteration
            if progression.ended is not None:
                raise progression.end() or StopAsyncIteration
            try:
                message = await self._stream.read()
            except ModscopeError as error:
                self._broken = not isinstance(error, ResourceExhausted)
                if self._left:
                    raise StopAsyncIteration from None
                raise
            if message is None:
                progression.ended = progression.ended or "the server ended the stream"
            else:
                self._take(message)
        return progression.ready.popleft()

    async def stop(self) -> None:
        """End the watch: its hooks are gone when this returns, and iterating ends after what has come.

        Idempotent.
        """
        progression = self._armed()
        if progression.ended is None and not self._left:
            request = hook_service_pb2.StopWatchRequest(watch_id=progression.watch_id)
            progression.stopped(await self._calls.unary(STOP_WATCH, request))

    async def leave(self) -> None:
        """End its connection alone: the watch goes on for its seconds of `keep`. Idempotent."""
        await self._close(stop=False)

    async def close(self) -> None:
        """End the watch and its connection. Idempotent; never fails.

        Where the connection has broken, a watch with `keep` is left as it is, to be resumed.
        """
        await self._close(stop=not (self._broken and is_kept(self.request)))

    async def _close(self, *, stop: bool) -> None:
        if self._own is None or self._left:
            return
        try:
            if self._progression is not None:
                with contextlib.suppress(ModscopeError):
                    if stop:
                        await self.stop()
                self._progression.ready.clear()
        finally:
            self._left = True
            await self._own.close()
