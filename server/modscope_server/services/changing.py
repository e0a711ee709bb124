"""Mutating calls on the wire: their options, and the operation that they answer with."""

from __future__ import annotations

from modscope.v1 import operation_pb2
from modscope_server.runtime.entries import Entry
from modscope_server.runtime.ledger import Ledger
from modscope_server.runtime.operations import Options
from modscope_server.services.call import Call
from modscope_server.services.convert import timestamp

__all__ = ["LARGEST", "operation", "options_of"]

LARGEST = 4 << 20
"""Most bytes of operations in one message."""

_PATHS = 10_000


def options_of(call: Call, options: operation_pb2.ChangeOptions | None) -> Options:
    """What a mutating call asks for, and how long it waits."""
    options = options or operation_pb2.ChangeOptions()
    return Options(
        who=call.who,
        expected=dict(options.expected),
        dry_run=options.dry_run,
        request_id=options.request_id,
        caller=call.caller,
        timeout=call.timeout,
        cancelled=call,
    )


def operation(entry: Entry, ledger: Ledger) -> operation_pb2.Operation:
    """An entry of the ledger, as it is now; digests and paths that do not fit into a message are left out."""
    message = operation_pb2.Operation(
        id=entry.id,
        kind=entry.kind,
        model=entry.model,
        paths=entry.paths,
        step=entry.step,
        who=entry.who,
        time=timestamp(entry.time),
        outcome=entry.outcome,
        before=entry.before,
        after=entry.after,
        undone=entry.undone_by is not None,
        notes=entry.notes,
        request_id=entry.request_id,
        undoes=entry.undoes.id if entry.undoes else "",
        not_undoable=ledger.not_undoable(entry)[0],
    )
    if message.ByteSize() > LARGEST:
        message.ClearField("before")
        message.ClearField("after")
        message.notes.append("the digests of so many tensors do not fit into a message: they are left out")
    if message.ByteSize() > LARGEST:
        message.notes.append(f"{len(message.paths) - _PATHS} more paths do not fit into a message")
        del message.paths[_PATHS:]
    return message
