"""Calls on a channel of grpc.aio: the twin of modscope_client/calls.py, with the same deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from modscope.blocks import keep_message_blocks
from modscope_client import calls
from modscope_client.channel import Endpoint, forked_or_closed
from modscope_client.errors import Internal, from_rpc, no_safe_point, stalled
from modscope_client.memory import Memory
from modscope_client.rpcs import Rpc
from modscope_client.transport import grpc

__all__ = ["Calls", "Runner", "Stream", "at_once", "in_a_thread"]

Q = TypeVar("Q")
R = TypeVar("R")
T = TypeVar("T")

Runner = Callable[[Callable[[Any], None]], Callable[[Any], Awaitable[None]]]
"""Makes a function that is awaited of one that is called."""


def at_once(take: Callable[[Any], None]) -> Callable[[Any], Awaitable[None]]:
    """Take messages in the event loop itself."""

    async def taken(message: Any) -> None:
        take(message)

    return taken


def in_a_thread(take: Callable[[Any], None]) -> Callable[[Any], Awaitable[None]]:
    """Take messages in another thread, where taking one may block."""

    async def taken(message: Any) -> None:
        await asyncio.to_thread(take, message)

    return taken


class Calls:
    """A channel of one event loop, opened by the first call; of no use in a forked child.

    Args:
        endpoint: where it leads.
        timeout: seconds that a call may take.
        ahead: bytes on their way beyond what is read; None where gRPC is to choose.
    """

    def __init__(self, endpoint: Endpoint, timeout: float, *, ahead: int | None = None) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        """Seconds."""
        self.memory = Memory()
        """Of the large arrays that it has brought."""
        self.closed = False
        self._ahead = ahead
        self._opened_in = os.getpid()
        self._opened: grpc.aio.Channel | None = None
        self._sync: calls.Calls | None = None

    async def close(self) -> None:
        """End all calls. Idempotent; in a forked child it leaves the parent's connection alone."""
        if not self.closed and self._opened_in == os.getpid():
            self.closed = True
            self.memory.close()
            if self._sync is not None:
                self._sync.close()
            if self._opened is not None:
                await self._opened.close()

    async def unary(self, rpc: Rpc[Q, R], request: Q) -> R:
        """The response to one request."""
        call = self._channel().unary_unary(rpc.path, rpc.encode, rpc.decode)
        with self._errors(rpc):
            response: R = await call(request, timeout=self.timeout, metadata=self.endpoint.metadata())
        return response

    async def listing(
        self, rpc: Rpc[Q, R], request: Q, take: Callable[[R], None], *, seconds: float | None = None
    ) -> None:
        """Give each response to one request to `take`, the last of them before the deadline.

        seconds: until the deadline, where it is not `timeout`.
        """
        stream = self._channel().unary_stream(rpc.path, rpc.encode, rpc.decode)
        with self._errors(rpc):
            deadline = seconds or self.timeout
            started = stream(request, timeout=deadline, metadata=self.endpoint.metadata())
            try:
                async for message in started:
                    take(message)
            finally:
                started.cancel()

    async def download(self, rpc: Rpc[Q, R], request: Q, take: Callable[[R], Awaitable[None]]) -> None:
        """Give each response to one request to `take`, for as long as they keep coming."""
        keep_message_blocks()
        stream = self._channel().unary_stream(rpc.path, rpc.encode, rpc.decode)
        started = stream(request, metadata=self.endpoint.metadata())
        await self._take_all(started, Watchdog(started.cancel, self.timeout), take)

    async def upload(self, rpc: Rpc[Q, R], requests: Iterable[Q], *, bulk: bool) -> R:
        """The response to a stream of requests that another thread makes and sends."""

        def run(sync: calls.Calls, origin: calls.Origin) -> R:
            return sync.upload(rpc, requests, bulk=bulk, origin=origin)

        return await self._in_a_thread(run)

    async def exchange(self, rpc: Rpc[Q, R], requests: Iterable[Q], take: Callable[[R], None]) -> None:
        """Give each response to a stream of requests to `take`, in another thread that sends them."""

        def run(sync: calls.Calls, origin: calls.Origin) -> None:
            sync.exchange(rpc, requests, take, origin=origin)

        await self._in_a_thread(run)

    async def watch(self, rpc: Rpc[Q, R], request: Q) -> Stream[R]:
        """The responses to one request: the first in time, the others whenever they come."""
        keep_message_blocks()
        stream = self._channel().unary_stream(rpc.path, rpc.encode, rpc.decode)
        started = stream(request, metadata=self.endpoint.metadata())
        watchdog = Watchdog(started.cancel, self.timeout)
        watchdog.resume()
        try:
            first: R | Any = await started.read()
        except BaseException as error:
            started.cancel()
            if isinstance(error, grpc.RpcError | asyncio.CancelledError):
                raise self._why(error, watchdog, waited_for_model=True) from None
            raise
        finally:
            watchdog.pause()
        if first is grpc.aio.EOF:
            raise Internal("a stream ended before it began")
        return Stream(first, started, self._errors)

    async def _take_all(
        self, started: Any, watchdog: Watchdog, take: Callable[[Any], Awaitable[None]]
    ) -> None:
        nothing_came = True
        try:
            while True:
                watchdog.resume()
                try:
                    message = await started.read()
                except (grpc.RpcError, asyncio.CancelledError) as error:
                    raise self._why(error, watchdog, waited_for_model=nothing_came) from None
                watchdog.pause()
                if message is grpc.aio.EOF:
                    return
                nothing_came = False
                await take(message)
        finally:
            watchdog.pause()
            started.cancel()

    async def _in_a_thread(self, run: Callable[[calls.Calls, calls.Origin], T]) -> T:
        """Let the sync client make a call: grpc.aio loses the status of a refusal while it sends."""
        self._check()
        if self._sync is None:
            self._sync = calls.Calls(self.endpoint, self.timeout)
        cancellation = _Cancellation()
        origin = calls.Origin(self.endpoint.metadata(), cancellation.begun)
        work = asyncio.ensure_future(asyncio.to_thread(run, self._sync, origin))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            cancellation.cancel()
            await asyncio.gather(work, return_exceptions=True)
            raise

    def _why(self, error: BaseException, watchdog: Watchdog, *, waited_for_model: bool) -> BaseException:
        """What ended a transfer: the watchdog, a status, the closing of the client, or the caller's task."""
        if watchdog.expired:
            return (no_safe_point if waited_for_model else stalled)(self.timeout)
        if isinstance(error, grpc.RpcError):
            return from_rpc(error, self.endpoint.address, waited=self.timeout)
        if self.closed and not _is_cancelled():
            return forked_or_closed(self._opened_in, self.endpoint.address)
        return error

    def _check(self) -> None:
        if self.closed or self._opened_in != os.getpid():
            raise forked_or_closed(self._opened_in, self.endpoint.address)

    def _channel(self) -> grpc.aio.Channel:
        self._check()
        if self._opened is None:
            self._opened = self.endpoint.open_async(ahead=self._ahead)
        return self._opened

    @contextlib.contextmanager
    def _errors(self, rpc: Rpc[Any, Any] | None = None) -> Iterator[None]:
        """Turn what grpc raises into errors of the tree."""
        try:
            yield
        except grpc.RpcError as error:
            waited = None if rpc is None or rpc.at_once else self.timeout
            raise from_rpc(error, self.endpoint.address, waited=waited) from None
        except asyncio.CancelledError:
            if self.closed and not _is_cancelled():
                raise forked_or_closed(self._opened_in, self.endpoint.address) from None
            raise


def _is_cancelled() -> bool:
    """Whether the running task is being cancelled, and not only its call; Python 3.10 cannot tell."""
    return bool(getattr(asyncio.current_task(), "cancelling", int)())


class Stream(Generic[R]):
    """A stream that has begun and goes on for as long as it likes."""

    def __init__(
        self, first: R, started: Any, errors: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self.first = first
        """Its first message."""
        self._started = started
        self._errors = errors

    async def read(self) -> R | None:
        """The next message after the first, whenever it comes; None at the end."""
        with self._errors():
            message: R | None = await self._started.read()
        return None if message is grpc.aio.EOF else message


class Watchdog:
    """Cancels a call when it has been waited for, without a pause, for so many seconds."""

    def __init__(self, cancel: Callable[[], Any], seconds: float) -> None:
        self.expired = False
        self._cancel = cancel
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def resume(self) -> None:
        """From now on the call is waited for."""
        self.pause()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)

    def pause(self) -> None:
        """From now on nobody waits for the call: the caller is at work."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self.expired = True
        self._cancel()


class _Cancellation:
    """Carries a cancellation to a call that another thread makes, whether it has begun or not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = False
        self._cancel: Callable[[], Any] = bool

    def begun(self, cancel: Callable[[], Any]) -> None:
        """The call has begun, and `cancel` ends it."""
        with self._lock:
            self._cancel = cancel
            if self._wanted:
                cancel()

    def cancel(self) -> None:
        """End the call, now or when it begins."""
        with self._lock:
            self._wanted = True
            self._cancel()
