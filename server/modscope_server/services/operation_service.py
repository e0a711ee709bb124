"""OperationService: the ledger of changes, undoing them, several of them as one."""

from __future__ import annotations

from collections.abc import Iterator

from modscope.v1 import operation_service_pb2 as messages
from modscope.wire import Frame
from modscope_server.errors import BadRequest
from modscope_server.runtime.undoing import plan_undo
from modscope_server.services.auth import changes
from modscope_server.services.call import Call
from modscope_server.services.changing import LARGEST, operation, options_of
from modscope_server.services.serving import BATCH, Serving
from modscope_server.services.transacting import received_plans
from modscope_server.services.uploads import Uploads

__all__ = ["OperationServicer"]


class OperationServicer:
    """Translates OperationService's calls."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def list_operations(
        self, request: messages.ListOperationsRequest, call: Call
    ) -> messages.ListOperationsResponse:
        """Operations on a model, newest last; a page ends early where its message would grow large."""
        ledger, registered = self._serving.ledger, self._serving.registry.get(request.model)
        size = request.page_size
        if size < 0:
            raise BadRequest(
                f"page_size is {size}", hint="give 0 to leave it to the server", field="page_size"
            )
        page = ledger.page(registered.name, min(size or BATCH, BATCH), request.page_token)
        response = messages.ListOperationsResponse(forgotten=page.forgotten)
        room = LARGEST
        for position, entry in enumerate(page.entries):
            message = operation(entry, ledger)
            room -= message.ByteSize()
            if room < 0 and position:
                response.next_page_token = str(page.entries[position - 1].number)
                return response
            response.operations.append(message)
        response.next_page_token = page.following
        return response

    def get_operation(
        self, request: messages.GetOperationRequest, call: Call
    ) -> messages.GetOperationResponse:
        """One operation."""
        ledger, registered = self._serving.ledger, self._serving.registry.get(request.model)
        entry = ledger.get(registered.name, request.id)
        return messages.GetOperationResponse(operation=operation(entry, ledger))

    @changes
    def undo(self, request: messages.UndoRequest, call: Call) -> messages.UndoResponse:
        """Put back what an operation changed."""
        ledger, registered = self._serving.ledger, self._serving.registry.get(request.model)
        entry = ledger.get(registered.name, request.id)
        done = self._serving.operations.carry_out(
            "undo",
            registered,
            [lambda: plan_undo(ledger, entry, registered)],
            options_of(call, request.options),
            undoes=entry,
        )
        return messages.UndoResponse(operation=operation(done, ledger))

    @changes
    def transact(
        self, requests: Iterator[Frame[messages.TransactRequest]], call: Call
    ) -> messages.TransactResponse:
        """Take several changes in, then carry all of them out at one write point, or none."""
        with Uploads(self._serving.budget) as uploads:
            opening = next(requests, Frame(messages.TransactRequest()))
            registered = self._serving.registry.get(opening.header.model)
            options = options_of(call, opening.header.options)
            plans = received_plans(self._serving, registered, _all(opening, requests), uploads)
            done = self._serving.operations.carry_out("transaction", registered, plans, options)
        return messages.TransactResponse(operation=operation(done, self._serving.ledger))


def _all(
    opening: Frame[messages.TransactRequest], following: Iterator[Frame[messages.TransactRequest]]
) -> Iterator[Frame[messages.TransactRequest]]:
    yield opening
    yield from following
