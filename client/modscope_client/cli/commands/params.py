"""`modscope params`: parameters, with statistics if asked."""

from __future__ import annotations

import click

from modscope_client.cli.arguments import TENSOR_PATH, type_option
from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb
from modscope_client.cli.views import parameters_view

__all__ = ["command"]


@click.command(
    "params",
    cls=Verb,
    examples=(
        "modscope params",
        "modscope params encoder --stats",
        "modscope params '*.weight' --type Linear --trainable",
    ),
)
@click.argument("glob", default="*", type=TENSOR_PATH)
@type_option("the module that owns the parameter")
@click.option("--frozen", is_flag=True, help="Only those that do not train.")
@click.option("--trainable", is_flag=True, help="Only those that train.")
@click.option("--stats", is_flag=True, help="Statistics of each value too, all of one step.")
@click.pass_obj
def command(
    settings: Settings, glob: str, type_: str | None, frozen: bool, trainable: bool, stats: bool
) -> None:
    """List parameters, with statistics if asked.

    As nn.Module.named_parameters gives them; a tied tensor once, with its other paths. GLOB is on
    parameter paths; the path of a module selects all under it.
    """
    if frozen and trainable:
        raise click.UsageError("--frozen and --trainable exclude each other: leave both out to see all")
    wanted = False if frozen else True if trainable else None
    with settings.remote_model() as model:
        parameters = model.parameters(glob, type=type_, stats=stats, requires_grad=wanted)
        emit(settings.output, parameters_view(stats), parameters, nothing="no parameter matches")
