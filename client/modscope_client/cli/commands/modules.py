"""`modscope modules`: modules by glob and type."""

from __future__ import annotations

import click

from modscope_client.cli.arguments import MODULE_PATH, type_option
from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb
from modscope_client.cli.views import MODULES

__all__ = ["command"]


@click.command(
    "modules",
    cls=Verb,
    examples=("modscope modules", "modscope modules 'encoder.*' --type Linear", "modscope modules -o name"),
)
@click.argument("glob", default="*", type=MODULE_PATH)
@type_option("the module")
@click.pass_obj
def command(settings: Settings, glob: str, type_: str | None) -> None:
    """List modules by glob and type.

    As nn.Module.named_modules gives them: the root, whose path is empty, comes first. GLOB is on
    the path: * is any run of characters, dots included; ? one; [...] a set; {a,b} either.
    """
    with settings.remote_model() as model:
        emit(settings.output, MODULES, model.modules(glob, type=type_), nothing="no module matches")
