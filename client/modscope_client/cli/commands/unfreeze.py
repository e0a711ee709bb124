"""`modscope unfreeze`: parameters train again."""

from __future__ import annotations

from typing import Any

import click

from modscope_client.cli.arguments import TENSOR_PATH, change_options, type_option
from modscope_client.cli.operations import emit_operation
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb

__all__ = ["command"]


@click.command(
    "unfreeze", cls=Verb, examples=("modscope unfreeze encoder", "modscope unfreeze '*' --type Linear")
)
@click.argument("glob", type=TENSOR_PATH)
@type_option("the module that owns the parameter")
@change_options
@click.pass_obj
def command(settings: Settings, /, glob: str, type_: str | None, **change: Any) -> None:
    """Let parameters train again.

    Sets requires_grad to True, at a step boundary. GLOB is on parameter paths; the path of a
    module selects all under it. A parameter that no optimizer holds still does not move: a note
    says so.
    """
    with settings.remote_model() as model:
        emit_operation(settings.output, model.unfreeze(glob, type=type_, **change))
