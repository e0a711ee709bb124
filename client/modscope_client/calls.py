"""Calls on a channel: deadlines, metadata, errors of the tree. aio/calls.py is its twin.

A call that is answered at once has a deadline of `timeout` seconds. A bulk transfer has none: it ends
with DeadlineExceeded when nothing has moved for `timeout` seconds. A watch may stay quiet for ever.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from modscope.blocks import keep_message_blocks
from modscope_client.channel import Endpoint, forked_or_closed
from modscope_client.errors import Internal, ModscopeError, from_rpc, no_safe_point, stalled
from modscope_client.memory import Memory
from modscope_client.rpcs import Rpc
from modscope_client.transport import grpc

__all__ = ["Calls", "Origin", "Stream"]

Q = TypeVar("Q")
R = TypeVar("R")


def _ignore(cancel: Callable[[], Any]) -> None:
    """Nobody wants to cancel the call."""


class Origin(NamedTuple):
    """Who makes a call, where it is not the thread that runs it."""

    metadata: tuple[tuple[str, str], ...]
    """What the call carries."""
    begun: Callable[[Callable[[], Any]], None] = _ignore
    """Told, once the call has begun, how it is cancelled."""


class Calls:
    """An open channel. Safe to use from several threads; of no use in a forked child.

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
        self._opened_in = os.getpid()
        self._channel = endpoint.open(ahead=ahead)
        self._unary: dict[Rpc[Any, Any], Callable[..., Any]] = {}

    def close(self) -> None:
        """End all calls. Idempotent; in a forked child it leaves the parent's connection alone."""
        if not self.closed and self._opened_in == os.getpid():
            self.closed = True
            self.memory.close()
            self._channel.close()

    def unary(self, rpc: Rpc[Q, R], request: Q) -> R:
        """The response to one request."""
        self._check()
        call = self._unary.get(rpc)
        if call is None:
            call = self._unary[rpc] = self._channel.unary_unary(rpc.path, rpc.encode, rpc.decode)
        with self._errors(rpc):
            response: R = call(request, timeout=self.timeout, metadata=self.endpoint.metadata())
        return response

    def listing(
        self, rpc: Rpc[Q, R], request: Q, take: Callable[[R], None], *, seconds: float | None = None
    ) -> None:
        """Give each response to one request to `take`, the last of them before the deadline.

        seconds: until the deadline, where it is not `timeout`.
        """
        self._check()
        with self._errors(rpc):
            stream = self._channel.unary_stream(rpc.path, rpc.encode, rpc.decode)
            deadline = seconds or self.timeout
            started = stream(request, timeout=deadline, metadata=self.endpoint.metadata())
            try:
                for message in started:
                    take(message)
            finally:
                started.cancel()

    def download(self, rpc: Rpc[Q, R], request: Q, take: Callable[[R], None]) -> None:
        """Give each response to one request to `take`, for as long as they keep coming."""
        self._check()
        keep_message_blocks()
        with self._errors():
            stream = self._channel.unary_stream(rpc.path, rpc.encode, rpc.decode)
            started = stream(request, metadata=self.endpoint.metadata())
        with Watchdog(started.cancel, self.timeout) as watchdog:
            self._take_all(started, watchdog, None, take)

    def upload(self, rpc: Rpc[Q, R], requests: Iterable[Q], *, bulk: bool, origin: Origin | None = None) -> R:
        """The response to a stream of requests; what iterating them raises is raised here."""
        self._check()
        origin = origin or Origin(self.endpoint.metadata())
        source = _Source(requests)
        deadline = None if bulk else self.timeout
        with self._errors():
            stream = self._channel.stream_unary(rpc.path, rpc.encode, rpc.decode)
            started = stream.future(source, timeout=deadline, metadata=origin.metadata)
            origin.begun(started.cancel)
        with Watchdog(started.cancel, self.timeout) as watchdog:
            source.start(started.cancel, watchdog if bulk else None)
            try:
                response: R = started.result()
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                raise self._why(error, watchdog, source, waited_for_model=source.exhausted) from None
            finally:
                started.cancel()
        return response

    def exchange(
        self,
        rpc: Rpc[Q, R],
        requests: Iterable[Q],
        take: Callable[[R], None],
        *,
        origin: Origin | None = None,
    ) -> None:
        """Give each response to a stream of requests to `take`, for as long as they keep coming."""
        self._check()
        origin = origin or Origin(self.endpoint.metadata())
        source = _Source(requests)
        with self._errors():
            stream = self._channel.stream_stream(rpc.path, rpc.encode, rpc.decode)
            started = stream(source, metadata=origin.metadata)
            origin.begun(started.cancel)
        with Watchdog(started.cancel, self.timeout) as watchdog:
            source.start(started.cancel, watchdog)
            self._take_all(started, watchdog, source, take)

    def watch(self, rpc: Rpc[Q, R], request: Q) -> Stream[R]:
        """The responses to one request: the first in time, the others whenever they come."""
        self._check()
        keep_message_blocks()
        with self._errors():
            stream = self._channel.unary_stream(rpc.path, rpc.encode, rpc.decode)
            started = stream(request, metadata=self.endpoint.metadata())
        with Watchdog(started.cancel, self.timeout) as watchdog:
            watchdog.resume()
            try:
                first: R = next(started)
            except StopIteration:
                raise Internal("a stream ended before it began") from None
            except BaseException as error:
                started.cancel()
                if isinstance(error, grpc.RpcError):
                    raise self._why(error, watchdog, None, waited_for_model=True) from None
                raise
        return Stream(first, started, self._errors)

    def _take_all(
        self, started: Any, watchdog: Watchdog, source: _Source | None, take: Callable[[Any], None]
    ) -> None:
        nothing_came = True
        try:
            while True:
                watchdog.resume()
                try:
                    message = next(started)
                except StopIteration:
                    return
                except grpc.RpcError as error:
                    raise self._why(error, watchdog, source, waited_for_model=nothing_came) from None
                watchdog.pause()
                nothing_came = False
                take(message)
        finally:
            started.cancel()

    def _why(
        self, error: Exception, watchdog: Watchdog, source: _Source | None, *, waited_for_model: bool
    ) -> BaseException:
        """What ended a transfer: the source of its requests, the watchdog, or the status in `error`."""
        if source is not None and source.error is not None:
            return source.error
        if watchdog.expired:
            return (no_safe_point if waited_for_model else stalled)(self.timeout)
        if isinstance(error, grpc.RpcError):
            return from_rpc(error, self.endpoint.address, waited=self.timeout)
        return forked_or_closed(self._opened_in, self.endpoint.address)

    @contextlib.contextmanager
    def _errors(self, rpc: Rpc[Any, Any] | None = None) -> Iterator[None]:
        """Turn what grpc raises into errors of the tree."""
        try:
            yield
        except grpc.RpcError as error:
            waited = None if rpc is None or rpc.at_once else self.timeout
            raise from_rpc(error, self.endpoint.address, waited=waited) from None
        except ValueError as error:
            # What grpc raises on a channel that another thread has closed meanwhile.
            if self.closed and not isinstance(error, ModscopeError):
                raise forked_or_closed(self._opened_in, self.endpoint.address) from None
            raise

    def _check(self) -> None:
        if self.closed or self._opened_in != os.getpid():
            raise forked_or_closed(self._opened_in, self.endpoint.address)


class Stream(Generic[R]):
    """A stream that has begun and goes on for as long as it likes."""

    def __init__(
        self, first: R, started: Any, errors: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self.first = first
        """Its first message."""
        self._started = started
        self._errors = errors

    def read(self) -> R | None:
        """The next message after the first, whenever it comes; None at the end."""
        with self._errors():
            message: R | None = next(self._started, None)
        return message


class Watchdog:
    """Cancels a call when it has been waited for, without a pause, for so many seconds."""

    def __init__(self, cancel: Callable[[], Any], seconds: float) -> None:
        self.expired = False
        self._cancel = cancel
        self._seconds = seconds
        self._since: float | None = None
        self._done = threading.Event()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._run, name="modscope-watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def resume(self) -> None:
        """From now on the call is waited for."""
        self._since = time.monotonic()

    def pause(self) -> None:
        """From now on nobody waits for the call: the caller is at work."""
        self._since = None

    def _run(self) -> None:
        pause = self._seconds
        while not self._done.wait(pause):
            since = self._since
            waited = 0.0 if since is None else time.monotonic() - since
            if waited >= self._seconds:
                self.expired = True
                self._cancel()
                return
            pause = self._seconds - waited


class _Source:
    """The requests of a call, as grpc's own thread takes them."""

    def __init__(self, requests: Iterable[Any]) -> None:
        self.error: BaseException | None = None
        self.exhausted = False
        self._requests = iter(requests)
        self._started = threading.Event()
        self._cancel: Callable[[], Any] = bool
        self._watchdog: Watchdog | None = None

    def start(self, cancel: Callable[[], Any], watchdog: Watchdog | None) -> None:
        """Let requests be taken; `cancel` ends the call where the next one cannot be made."""
        self._cancel = cancel
        self._watchdog = watchdog
        self._started.set()

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> Any:
        self._started.wait()
        if self._watchdog:
            self._watchdog.pause()
        try:
            return next(self._requests)
        except StopIteration:
            self.exhausted = True
            raise
        except BaseException as error:
            self.error = error
            # Cancelled first, so that the server does not take a broken stream for a whole one.
            self._cancel()
            raise StopIteration from None
        finally:
            if self._watchdog:
                self._watchdog.resume()
