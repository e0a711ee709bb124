"""The ledger on the wire: the rpcs of OperationService, and its answers as records."""

from __future__ import annotations

from collections.abc import Iterator

from modscope.v1 import operation_service_pb2
from modscope_client import convert
from modscope_client.convert import request
from modscope_client.rpcs import bulk_up, plain
from modscope_client.types import Operation, OperationList

__all__ = ["GET_OPERATION", "LIST_OPERATIONS", "TRANSACT", "UNDO", "Pages"]

_SERVICE = "modscope.v1.OperationService"

LIST_OPERATIONS = plain(
    _SERVICE,
    operation_service_pb2.ListOperationsRequest,
    operation_service_pb2.ListOperationsResponse,
    at_once=True,
)
GET_OPERATION = plain(
    _SERVICE,
    operation_service_pb2.GetOperationRequest,
    operation_service_pb2.GetOperationResponse,
    at_once=True,
)
UNDO = plain(_SERVICE, operation_service_pb2.UndoRequest, operation_service_pb2.UndoResponse)
TRANSACT = bulk_up(_SERVICE, operation_service_pb2.TransactRequest, operation_service_pb2.TransactResponse)


class Pages:
    """The ledger of a model, as its pages come: ask for each of `requests`, and give the answer to `take`."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._token: str | None = ""
        self._found: list[Operation] = []
        self._forgotten = 0

    def requests(self) -> Iterator[operation_service_pb2.ListOperationsRequest]:
        """What to ask for, until the last page has come."""
        while self._token is not None:
            yield request(
                operation_service_pb2.ListOperationsRequest, model=self._model, page_token=self._token
            )

    def take(self, page: operation_service_pb2.ListOperationsResponse) -> None:
        """One page."""
        self._found += map(convert.operation, page.operations)
        self._forgotten = page.forgotten
        self._token = page.next_page_token or None

    def finish(self) -> OperationList:
        """All of it."""
        return OperationList(tuple(self._found), self._forgotten)
