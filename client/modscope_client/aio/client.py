"""The async client: the twin of modscope_client/client.py, name for name."""

from __future__ import annotations

import os
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from modscope.v1 import model_service_pb2
from modscope_client import convert, rpcs
from modscope_client.aio.calls import Calls
from modscope_client.aio.handles import RemoteModel
from modscope_client.channel import DEFAULT_TIMEOUT, Endpoint, check_timeout
from modscope_client.convert import request
from modscope_client.types import ModelInfo

if TYPE_CHECKING:
    from modscope_client.aio.run import Run

__all__ = ["Client", "connect"]


def connect(
    address: str | None = None,
    *,
    token: str | None = None,
    tls: bool | str | os.PathLike[str] | bytes | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    insecure: bool = False,
) -> Client:
    """An async client, with the arguments of modscope_client.connect.

    Use it in `async with`, or await it. The connection is made by the first call.
    """
    seconds = check_timeout(timeout)
    return Client(Endpoint.find(address, token, tls, insecure=insecure), seconds)


class Client:
    """A connection of one event loop to one server; closed by leaving its `async with`."""

    def __init__(self, endpoint: Endpoint, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._calls = Calls(endpoint, timeout)
        self._run: Run | None = None

    def __repr__(self) -> str:
        return f"<modscope_client.aio.Client of {self.address}{', closed' if self._calls.closed else ''}>"

    def __await__(self) -> Generator[Any, None, Client]:
        return self
        yield

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def address(self) -> str:
        """unix:/path or host:port."""
        return self._calls.endpoint.address

    @property
    def timeout(self) -> float:
        """Seconds that a call may take, and that a transfer may stand still."""
        return self._calls.timeout

    @property
    def run(self) -> Run:
        """The training run: its status, pausing, stepping, breaks."""
        from modscope_client.aio.run import Run

        if self._run is None:
            self._run = Run(self._calls)
        return self._run

    async def close(self) -> None:
        """End the connection and all that runs on it. Idempotent.

        A pause of this client goes on until its lease ends.
        """
        if self._run is not None:
            self._run.close()
        await self._calls.close()

    async def models(self) -> list[ModelInfo]:
        """The models that the server has, in the order of their registration."""
        found: list[ModelInfo] = []
        token = ""
        while True:
            page = await self._calls.unary(
                rpcs.LIST_MODELS, request(model_service_pb2.ListModelsRequest, page_token=token)
            )
            found += map(convert.model_info, page.models)
            token = page.next_page_token
            if not token:
                return found

    async def model(self, name: str | None = None) -> RemoteModel:
        """A handle to the model of that name, or to the only one.

        Raises NotFound, naming the models that there are, where none has the name or several are there.
        """
        asked = request(model_service_pb2.GetModelRequest, model=name)
        return RemoteModel(self._calls, (await self._calls.unary(rpcs.GET_MODEL, asked)).model.name)
