"""What a mutating verb says afterwards: its Operation on stdout, notes on stderr."""

from __future__ import annotations

import sys

from modscope_client.cli.messages import note, styled
from modscope_client.cli.render import emit_document
from modscope_client.cli.settings import Output
from modscope_client.cli.text import one_line, plural
from modscope_client.types import Operation

__all__ = ["emit_operation", "operation_text"]

_PATHS_ON_TERMINAL = 20
_DONE = {
    "write": "wrote",
    "freeze": "froze",
    "unfreeze": "unfroze",
    "reinitialize": "reinitialised",
    "load_state_dict": "loaded",
    "set_optimizer": "set hyper-parameters of",
    "add_to_optimizer": "gave an optimizer",
    "restore_snapshot": "restored",
    "transaction": "changed",
    "undo": "put back",
}
"""Kind of operation -> what was done to its tensors."""


def emit_operation(output: Output, operation: Operation) -> None:
    """Prints the operation, then its notes."""
    emit_document(output, operation, name=operation.id, text=lambda: operation_text(operation))
    for text in operation.notes:
        note(text)


def operation_text(operation: Operation, *, paths: bool = True) -> str:
    """The operation for people: a line that tells what was done and when, then the paths if wanted.

    A terminal gets the first 20 paths; anything else all of them.
    """
    head = _head(operation)
    if not paths:
        return f"{head}\n"
    limit = _PATHS_ON_TERMINAL if sys.stdout.isatty() else len(operation.paths)
    lines = [f"  {one_line(path)}" for path in operation.paths[:limit]]
    if len(operation.paths) > limit:
        lines.append(f"  ... and {len(operation.paths) - limit:,} more; -o json lists them all")
    return "".join(f"{line}\n" for line in (head, *lines))


def _head(operation: Operation) -> str:
    kind = operation.kind.replace("_", " ")
    # A tied tensor is reinitialised once, and all its names are told.
    count = plural(len(operation.paths), "path" if operation.kind == "reinitialize" else "tensor")
    if operation.outcome == "dry_run":
        return f"{kind} would touch {count}; dry run, nothing was changed"
    if operation.outcome == "failed":
        return f"{kind} failed at step {operation.step:,} {_id(operation)}; nothing was changed"
    undoes = f", undoing {one_line(operation.undoes)}" if operation.undoes else ""
    done = f"{_DONE.get(operation.kind, kind)} {count}" if operation.paths else kind
    return f"{done} at step {operation.step:,} {_id(operation)}{undoes}"


def _id(operation: Operation) -> str:
    return styled(f"({one_line(operation.id)})", dim=True)
