"""`modscope reinit`: parameters initialised anew."""

from __future__ import annotations

import json
from typing import Any

import click

from modscope_client.cli.arguments import MODULE_PATH, assignments, change_options, type_option
from modscope_client.cli.operations import emit_operation
from modscope_client.cli.settings import Settings
from modscope_client.cli.verbs import Verb

__all__ = ["command"]

_OPTIONS = frozenset(
    ("glob", "type", "parameter", "scheme", "seed", "reset_optimizer", "expected", "dry_run", "request_id")
)
"""Keywords of reinitialize that are no arguments of a scheme."""


def _scheme_arguments(texts: tuple[str, ...]) -> dict[str, Any]:
    """`std=0.02` and the like as keyword arguments; a value is JSON, or else text."""
    given = assignments(
        texts, where="--arg", example="std=0.02", what="argument of a scheme", reserved=_OPTIONS
    )
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


@click.command(
    "reinit",
    cls=Verb,
    examples=(
        "modscope reinit head",
        "modscope reinit '*' --type Linear --param weight --scheme normal_ --arg std=0.02 --seed 1",
        "modscope reinit 'encoder.*' --type LayerNorm --dry-run",
    ),
)
@click.argument("glob", type=MODULE_PATH)
@type_option("the module")
@click.option("--param", "parameter", metavar="NAME", help="Only this parameter of each module: weight.")
@click.option(
    "--scheme",
    default="reset_parameters",
    metavar="S",
    help="In-place function of torch.nn.init, such as normal_ or kaiming_uniform_.  [each module's own]",
)
@click.option(
    "--arg", "arguments", multiple=True, metavar="NAME=VALUE", help="Argument of the scheme: std=0.02."
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Draw as torch.manual_seed(N) would.")
@click.option("--keep-optimizer-state", is_flag=True, help="Keep the moments of what is initialised.")
@change_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    glob: str,
    type_: str | None,
    parameter: str | None,
    scheme: str,
    arguments: tuple[str, ...],
    seed: int | None,
    keep_optimizer_state: bool,
    **change: Any,
) -> None:
    """Initialise parameters anew.

    In the order of nn.Module.apply: children first, then the module itself. GLOB is on module
    paths; '' is the root alone, '*' every module. A scheme that cannot serve one of the
    parameters is refused before anything is changed.
    """
    scheme_arguments = _scheme_arguments(arguments)
    with settings.remote_model() as model:
        operation = model.reinitialize(
            glob,
            type=type_,
            parameter=parameter,
            scheme=scheme,
            seed=seed,
            reset_optimizer=not keep_optimizer_state,
            **change,
            **scheme_arguments,
        )
        emit_operation(settings.output, operation)
