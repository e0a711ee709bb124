"""One test body for the sync and the async client: what a call gives is awaited where it can be."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from modscope_client import aio
from modscope_client.channel import Endpoint
from modscope_client.client import Client
from modscope_server import Scope

__all__ = ["CLIENTS", "entered", "next_of", "over", "served_to", "settle"]

CLIENTS = (Client, aio.Client)


def over(kind: Any, endpoint: Endpoint, body: Callable[[Any], Awaitable[Any]], timeout: float = 30) -> Any:
    """Runs the body with a client of that kind, and closes it."""

    async def main() -> Any:
        client = kind(endpoint, timeout)
        try:
            return await body(client)
        finally:
            await settle(client.close())

    return asyncio.run(main())


def served_to(kind: Any, scope: Scope, body: Callable[[Any], Awaitable[Any]]) -> Any:
    """Runs the body with the only model of a real server, through a client of that kind."""

    async def main(client: Any) -> Any:
        return await body(await settle(client.model()))

    return over(kind, Endpoint.find(scope.address, scope.token, None, insecure=False), main)


async def settle(given: Any) -> Any:
    """What a call gives, awaited where it is a coroutine."""
    return await given if inspect.isawaitable(given) else given


async def next_of(events: Any) -> Any:
    """The next event of either kind of watch; None where there is no more."""
    return await anext(events, None) if hasattr(events, "__anext__") else next(events, None)


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """`with` or `async with`, whichever the manager is made for."""
    if hasattr(manager, "__aenter__"):
        async with manager as made:
            yield made
    else:
        with manager as made:
            yield made
