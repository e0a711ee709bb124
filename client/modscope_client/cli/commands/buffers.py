"""`modscope buffers`: buffers, with statistics if asked."""

from __future__ import annotations

import click

from modscope_client.cli.arguments import TENSOR_PATH, type_option
from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb
from modscope_client.cli.views import buffers_view

__all__ = ["command"]


@click.command(
    "buffers", cls=Verb, examples=("modscope buffers", "modscope buffers '*.running_mean' --stats")
)
@click.argument("glob", default="*", type=TENSOR_PATH)
@type_option("the module that owns the buffer")
@click.option("--stats", is_flag=True, help="Statistics of each value too, all of one step.")
@click.pass_obj
def command(settings: Settings, glob: str, type_: str | None, stats: bool) -> None:
    """List buffers.

    As nn.Module.named_buffers gives them. SAVED tells those that the state_dict carries. GLOB is
    on buffer paths; the path of a module selects all under it.
    """
    with settings.remote_model() as model:
        buffers = model.buffers(glob, type=type_, stats=stats)
        emit(settings.output, buffers_view(stats), buffers, nothing="no buffer matches")
