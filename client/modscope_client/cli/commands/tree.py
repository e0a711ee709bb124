"""`modscope tree`: the module tree with its parameter counts."""

from __future__ import annotations

import click

from modscope_client.cli.arguments import MODULE_PATH
from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.tree import tree_rows
from modscope_client.cli.verbs import Verb
from modscope_client.cli.views import TREE

__all__ = ["command"]


@click.command(
    "tree", cls=Verb, examples=("modscope tree", "modscope tree encoder --depth 2", "modscope tree -o json")
)
@click.argument("path", default="", type=MODULE_PATH)
@click.option("--depth", type=click.IntRange(min=0), metavar="N", help="At most so many levels below PATH.")
@click.pass_obj
def command(settings: Settings, path: str, depth: int | None) -> None:
    """Draw the module tree with its parameter counts.

    Counts are of the whole subtree, a tied parameter once. FROZEN marks what does not train. With
    -o json it is the list of modules that the tree shows, in PyTorch's order.
    """
    with settings.remote_model() as model:
        modules = model.modules(root=path, depth=None if depth is None else depth)
        emit(settings.output, TREE, tree_rows(modules, depth), nothing="no module")
