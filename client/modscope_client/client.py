"""The client: a connection to one server, and the models that it serves."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from modscope.v1 import model_service_pb2
from modscope_client import convert, rpcs
from modscope_client.calls import Calls
from modscope_client.channel import DEFAULT_TIMEOUT, Endpoint, check_timeout
from modscope_client.convert import request
from modscope_client.handles import RemoteModel
from modscope_client.types import ModelInfo

if TYPE_CHECKING:
    from modscope_client.run import Run

__all__ = ["Client", "connect"]


def connect(
    address: str | None = None,
    *,
    token: str | None = None,
    tls: bool | str | os.PathLike[str] | bytes | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    insecure: bool = False,
) -> Client:
    """A client of the server at `address`, of MODSCOPE_ADDRESS, or of the only server on this host.

    token: of either role; without it MODSCOPE_TOKEN, or what the server left for its own user on this
    host. tls: True for the system's authorities, a CA file or its PEM bytes for others. timeout:
    seconds that a call may take, and that a transfer may stand still. insecure: send the token
    unencrypted to another host. The connection is made by the first call.

    Raises Unavailable where no server is to be found, FailedPrecondition where several are, and
    InvalidArgument for what cannot be.
    """
    seconds = check_timeout(timeout)
    return Client(Endpoint.find(address, token, tls, insecure=insecure), seconds)


class Client:
    """A connection to one server. Safe to use from several threads; closed by leaving its `with`."""

    def __init__(self, endpoint: Endpoint, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._calls = Calls(endpoint, timeout)
        self._run: Run | None = None
        self._run_made = threading.Lock()

    def __repr__(self) -> str:
        return f"<modscope_client.Client of {self.address}{', closed' if self._calls.closed else ''}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        from modscope_client.run import Run

        with self._run_made:
            if self._run is None:
                self._run = Run(self._calls)
            return self._run

    def close(self) -> None:
        """End the connection and all that runs on it. Idempotent.

        A pause of this client goes on until its lease ends.
        """
        if self._run is not None:
            self._run.close()
        self._calls.close()

    def models(self) -> list[ModelInfo]:
        """The models that the server has, in the order of their registration."""
        found: list[ModelInfo] = []
        token = ""
        while True:
            page = self._calls.unary(
                rpcs.LIST_MODELS, request(model_service_pb2.ListModelsRequest, page_token=token)
            )
            found += map(convert.model_info, page.models)
            token = page.next_page_token
            if not token:
                return found

    def model(self, name: str | None = None) -> RemoteModel:
        """A handle to the model of that name, or to the only one.

        Raises NotFound, naming the models that there are, where none has the name or several are there.
        """
        asked = request(model_service_pb2.GetModelRequest, model=name)
        return RemoteModel(self._calls, self._calls.unary(rpcs.GET_MODEL, asked).model.name)
