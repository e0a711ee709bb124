"""`modscope optim`: optimizers' groups listed, their hyper-parameters set, parameters added."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import click

from modscope_client.cli.arguments import TENSOR_PATH, assignments, change_options
from modscope_client.cli.change_views import GROUPS
from modscope_client.cli.messages import hint, note
from modscope_client.cli.operations import emit_operation
from modscope_client.cli.render import emit
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import one_line, plural
from modscope_client.cli.verbs import ListingGroup
from modscope_client.types import OptimizerList

__all__ = ["command"]

_MOST_NAMED = 5
_OPTIONS = frozenset(("group", "base_lr", "expected", "dry_run", "request_id"))
"""Keywords of set_optimizer that are no hyper-parameters."""


@click.group(
    "optim",
    cls=ListingGroup,
    examples=("modscope optim", "modscope optim set lr=3e-4", "modscope optim add 'head.*'"),
)
@click.pass_context
def command(context: click.Context) -> None:
    """List optimizer groups, set hyper-parameters, add parameters.

    Without a verb it lists the groups of all optimizers, with an index counted over all of them, and
    tells which parameters no optimizer holds; -o json has every hyper-parameter and path.
    """
    if context.invoked_subcommand is not None:
        return
    settings: Settings = context.find_root().obj
    with settings.remote_model() as model:
        found = model.optimizer_list()
    nothing = "no optimizer is known: give it to attach(optimizer=...), or let it step once"
    emit(settings.output, GROUPS, found.groups, nothing=nothing)
    _tell_more(found)


@command.command(
    "set",
    examples=(
        "modscope optim set lr=3e-4",
        "modscope optim set lr=1e-3 weight_decay=0.1 'betas=[0.9, 0.95]' --group 0",
        "modscope optim set lr=1e-3 --base-lr",
    ),
)
@click.argument("settings_", metavar="NAME=VALUE...", nargs=-1, required=True)
@click.option("--group", type=click.IntRange(min=0), metavar="N", help="Only this group.  [all]")
@click.option("--base-lr", is_flag=True, help="Schedulers go on from the new lr as well.")
@change_options
@click.pass_obj
def set_(
    settings: Settings, /, settings_: tuple[str, ...], group: int | None, base_lr: bool, **change: Any
) -> None:
    """Set hyper-parameters, at a step boundary.

    A value is JSON: a number, true, false, null, a text in quotes, or a list. A learning rate that a
    scheduler computes is overwritten at its next step, unless --base-lr is given.
    """
    hyperparameters = _hyperparameters(settings_)
    with settings.remote_model() as model:
        operation = model.set_optimizer(group, base_lr=base_lr, **change, **hyperparameters)
    emit_operation(settings.output, operation)


@command.command("add", examples=("modscope optim add 'head.*'", "modscope optim add scale --group 1"))
@click.argument("glob", type=TENSOR_PATH)
@click.option("--group", type=click.IntRange(min=0), metavar="N", help="Group that takes them.  [the only]")
@change_options
@click.pass_obj
def add(settings: Settings, /, glob: str, group: int | None, **change: Any) -> None:
    """Give parameters that no optimizer holds to one.

    GLOB is on parameter paths; the path of a module selects all under it.
    """
    with settings.remote_model() as model:
        emit_operation(settings.output, model.add_to_optimizer(glob, group, **change))


def _hyperparameters(texts: tuple[str, ...]) -> dict[str, Any]:
    given = assignments(
        texts, where="NAME=VALUE", example="lr=3e-4", what="hyper-parameter", reserved=_OPTIONS
    )
    found: dict[str, Any] = {}
    for name, value in given.items():
        try:
            found[name] = json.loads(value)
        except ValueError as error:
            raise click.BadParameter(
                f"{name}: {value!r} is no JSON ({error}): give a number, a list, true, false or null",
                param_hint="NAME=VALUE",
            ) from None
    return found


def _tell_more(found: OptimizerList) -> None:
    for group in found.groups:
        if group.strangers:
            strangers = "; ".join(group.strangers[:_MOST_NAMED])
            count = plural(len(group.strangers), "parameter")
            note(f"group {group.index} holds {count} that no registered model has: {strangers}")
    if not found.unheld or not found.groups:
        return
    names = ", ".join(map(one_line, found.unheld[:_MOST_NAMED]))
    more = ", ..." if len(found.unheld) > _MOST_NAMED else ""
    note(f"no optimizer holds {plural(len(found.unheld), 'parameter')}: {names}{more}")
    held = [path for group in found.groups for path in group.parameters]
    largest = max(found.groups, key=lambda group: len(group.parameters))
    group_option = f" --group {largest.index}" if len(found.groups) > 1 else ""
    hint(f"modscope optim add {_glob(found.unheld, held)}{group_option}")


def _glob(unheld: Sequence[str], held: Sequence[str]) -> str:
    """What matches these parameters and none of those, quoted for a shell; a module of theirs as a whole."""
    import shlex

    from modscope.paths import literal

    mixed = {above for path in held for above in _above(path)}
    counts = Counter(above for path in unheld for above in _above(path))
    patterns: dict[str, None] = {}
    for path in unheld:
        whole = (above for above in _above(path) if above not in mixed and counts[above] > 1)
        above = next(whole, None)
        patterns[literal(path) if above is None else f"{literal(above)}*"] = None
    several = ",".join(patterns)
    return shlex.quote(several if len(patterns) == 1 else f"{{{several}}}")


def _above(path: str) -> Iterator[str]:
    """What the path begins with, each part with its dot, shortest first."""
    yield ""
    for position, character in enumerate(path, 1):
        if character == ".":
            yield path[:position]
