"""`modscope freeze`: parameters stop training."""

from __future__ import annotations

from typing import Any

import click

from modscope_client.cli.arguments import TENSOR_PATH, change_options, type_option
from modscope_client.cli.operations import emit_operation
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb

__all__ = ["command"]


@click.command(
    "freeze",
    cls=Verb,
    examples=("modscope freeze encoder", "modscope freeze '*.bias'", "modscope freeze '*' --type Embedding"),
)
@click.argument("glob", type=TENSOR_PATH)
@type_option("the module that owns the parameter")
@click.option("--force", is_flag=True, help="Freeze even where that would break training.")
@click.option("--norm-stats", is_flag=True, help="Freeze running statistics of normalisation layers too.")
@change_options
@click.pass_obj
def command(
    settings: Settings, /, glob: str, type_: str | None, force: bool, norm_stats: bool, **change: Any
) -> None:
    """Stop the training of parameters.

    Sets requires_grad to False, at a step boundary, and drops their gradients, so that the
    optimizer leaves them alone. GLOB is on parameter paths; the path of a module selects all under it.
    Refused where nothing would be left to train, unless forced. Running statistics go on moving while
    the module is in training mode, unless --norm-stats is given.
    """
    with settings.remote_model() as model:
        emit_operation(
            settings.output, model.freeze(glob, type=type_, force=force, norm_stats=norm_stats, **change)
        )
