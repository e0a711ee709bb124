"""`modscope undo`: what an operation changed is put back."""

from __future__ import annotations

from typing import Any

import click

from modscope_client.cli.arguments import OPERATION_ID, change_options
from modscope_client.cli.operations import emit_operation
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb

__all__ = ["command"]


@click.command("undo", cls=Verb, examples=("modscope undo op-3", "modscope undo op-3 --dry-run"))
@click.argument("id_", metavar="ID", type=OPERATION_ID)
@change_options
@click.pass_obj
def command(settings: Settings, /, id_: str, **change: Any) -> None:
    """Put back what an operation changed.

    Bit for bit, at a step boundary: values, requires_grad, the optimizer's state. It is an operation
    too, and can be undone. Refused where a later operation has changed the same, or where what
    it needs was let go; 'modscope ops' lists the IDs.
    """
    with settings.remote_model() as model:
        emit_operation(settings.output, model.undo(id_, **change))
