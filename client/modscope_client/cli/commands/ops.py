"""`modscope ops`: what was changed, newest last."""

from __future__ import annotations

import click

from modscope_client.cli.arguments import OPERATION_ID
from modscope_client.cli.change_views import OPERATIONS, local_time
from modscope_client.cli.details import facts_text
from modscope_client.cli.messages import note, styled
from modscope_client.cli.render import emit, emit_document
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import one_line, plural
from modscope_client.cli.verbs import Verb
from modscope_client.types import Operation

__all__ = ["command"]


@click.command("ops", cls=Verb, examples=("modscope ops", "modscope ops op-3", "modscope ops -o json"))
@click.argument("id_", metavar="[ID]", type=OPERATION_ID, required=False)
@click.pass_obj
def command(settings: Settings, id_: str | None) -> None:
    """List what was changed.

    Each mutating call, newest last: when and at which step it took effect, what it touched, who asked
    for it, and whether it was undone or cannot be. With an ID, one of them whole, its digests
    included.
    """
    with settings.remote_model() as model:
        if id_ is None:
            found = model.operation_list()
            emit(settings.output, OPERATIONS, found.operations, nothing="nothing was changed")
            if found.forgotten:
                note(f"{plural(found.forgotten, 'older operation')} no longer in the ledger")
        else:
            one = model.operation(id_)
            emit_document(settings.output, one, name=one.id, text=lambda: _whole(one))


def _whole(operation: Operation) -> str:
    heading = f"{styled(one_line(operation.id), bold=True)}  {styled(one_line(operation.kind), fg='cyan')}"
    facts = [
        ("outcome", operation.outcome),
        ("step", f"{operation.step:,}"),
        ("time", local_time(operation.time)),
        ("who", one_line(operation.who)),
        ("request id", one_line(operation.request_id)),
        ("undoes", one_line(operation.undoes)),
        ("undone", "yes" if operation.undone else ""),
        ("not undoable", one_line(operation.not_undoable)),
        *(("note", one_line(text)) for text in operation.notes),
        *(("path", _path(operation, path)) for path in operation.paths),
    ]
    return facts_text(heading, facts)


def _path(operation: Operation, path: str) -> str:
    before, after = (
        digests.get(path) if digests else None for digests in (operation.before, operation.after)
    )
    if before is None and after is None:
        return one_line(path)
    if before == after:
        return f"{one_line(path)}  {before}, unchanged"
    return f"{one_line(path)}  {before} -> {after}"
