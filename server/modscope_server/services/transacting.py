"""Taking in a transaction: several changes in one stream, and the plans that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from modscope.v1 import operation_service_pb2 as messages
from modscope.wire import Frame
from modscope_server.errors import BadRequest, ModscopeServerError
from modscope_server.inspection.changes import Change, Plan
from modscope_server.runtime.registry import Registered
from modscope_server.services.change_plans import Write, freeze_plan, reinitialize_plan, unfreeze_plan
from modscope_server.services.optimizer_service import add_to_optimizer_plan, set_optimizer_plan
from modscope_server.services.serving import Serving
from modscope_server.services.uploads import Uploads

__all__ = ["received_plans"]

_PLANS: dict[str, Callable[[Serving, Registered, Any], Plan]] = {
    "freeze": freeze_plan,
    "unfreeze": unfreeze_plan,
    "reinitialize": reinitialize_plan,
    "set_optimizer": set_optimizer_plan,
    "add_to_optimizer": add_to_optimizer_plan,
}


def received_plans(
    serving: Serving,
    registered: Registered,
    frames: Iterator[Frame[messages.TransactRequest]],
    uploads: Uploads,
) -> list[Plan]:
    """The plans of all changes, in their order, once the stream has ended well.

    A refusal says which change it is about. Raises BadRequest for a stream that is no transaction, and
    what the changes raise.
    """
    made: list[tuple[str, Plan | Write]] = []
    committed = False
    for position, frame in enumerate(frames):
        header = frame.header
        if committed:
            raise BadRequest("more comes after `commit`", hint="send it last", field="commit")
        committed = header.commit
        if position and (header.model or header.HasField("options")):
            raise BadRequest(
                "the model and the options come in the first message alone",
                hint="send them once, before the changes",
                field="model" if header.model else "options",
            )
        if header.HasField("change"):
            verb: str = header.change.WhichOneof("verb") or ""
            with _about(len(made), verb):
                made.append((verb, _begun(serving, registered, header.change, verb, uploads)))
        uploads.feed(frame.data)
    if not committed:
        # A call that is broken off can look like one that has ended well.
        raise BadRequest(
            "the stream ends without `commit`", hint="send it in the last message", field="commit"
        )
    if not made:
        raise BadRequest("a transaction without a change", hint="send at least one", field="change")
    received = uploads.finish()
    plans = []
    for number, (verb, begun) in enumerate(made):
        with _about(number, verb):
            plan = begun.plan(received) if isinstance(begun, Write) else begun
        plans.append(_told(number, verb, plan))
    return plans


def _begun(
    serving: Serving, registered: Registered, change: messages.Change, verb: str, uploads: Uploads
) -> Plan | Write:
    if not verb:
        raise BadRequest("it says not what to do", hint="set one of write, freeze and so on", field="verb")
    request = getattr(change, verb)
    if request.model or request.HasField("options") or getattr(request, "dry_run", False):
        raise BadRequest(
            "a change within a transaction has no model and no options of its own",
            hint="set them in the first message: they are those of the whole transaction",
            field=f"{verb}.model" if request.model else f"{verb}.options",
        )
    if verb != "write":
        return _PLANS[verb](serving, registered, request)
    if request.data:
        raise BadRequest(
            "the bytes of a write follow it in messages of their own",
            hint="send them as `data` of TransactRequest",
            field="write.data",
        )
    return Write(serving, registered, request, uploads)


def _told(number: int, verb: str, plan: Plan) -> Plan:
    def told() -> Change:
        with _about(number, verb):
            return plan()

    return told


@contextmanager
def _about(number: int, verb: str) -> Iterator[None]:
    """Name the change in a refusal of it."""
    try:
        yield
    except ModscopeServerError as error:
        error.message = f"change {number + 1} ({verb or 'empty'}): {error.message}"
        error.details["change"] = str(number)
        raise
