"""What the verbs that watch have in common: which modules, what of them, when, and what gives way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from modscope_client.cli.arguments import MODULE_PATH, type_option
from modscope_client.cli.settings import DURATION

__all__ = ["limit_options", "watch_options"]

F = TypeVar("F", bound=Callable[..., Any])

_HOOKS = ("forward_pre", "forward", "backward_pre", "backward", "parameter", "gradient", "metric")
_PAYLOADS = ("none", "stats", "histogram", "tensor")
_PHASES = ("training", "evaluation")
_OVERFLOWS = ("drop_oldest", "drop_newest", "disconnect", "block")
_COUNT = click.IntRange(min=1)
_STEP = click.IntRange(min=0)
_ABOVE_ZERO = click.FloatRange(min=0, min_open=True)
_NAMES = {"type_": "type"}
"""What click calls an option -> what RemoteModel.watch calls it, where that is another name."""


def watch_options(*, glob: str | None = None, payload: str = "stats") -> Callable[[F], F]:
    """The options of a watch, given to the verb as `watch`: keyword arguments of RemoteModel.watch.

    glob: the default of GLOB; None where it must be given.
    """
    options = [*_what(glob, payload), *_when(), *_pressure()]

    def decorate(verb: F) -> F:
        def gathered(*arguments: Any, **given: Any) -> Any:
            watch = {_NAMES.get(name, name): given.pop(name) for name in names}
            return verb(*arguments, watch=watch, **given)

        gathered.__doc__ = verb.__doc__
        others = getattr(verb, "__click_params__", [])
        gathered.__click_params__ = list(others)  # type: ignore[attr-defined]
        made: Any = gathered
        for option in reversed(options):
            made = option(made)
        names = [parameter.name for parameter in made.__click_params__ if parameter not in others]
        return made  # type: ignore[no-any-return]

    return decorate


def _what(glob: str | None, payload: str) -> list[Callable[[Any], Any]]:
    """Which modules, and how much of what they see."""
    return [
        click.argument("glob", type=MODULE_PATH)
        if glob is None
        else click.argument("glob", metavar="[GLOB]", type=MODULE_PATH, default=glob),
        type_option("the module"),
        click.option(
            "--hook",
            "hooks",
            multiple=True,
            type=click.Choice(_HOOKS),
            metavar="H",
            default=("forward",),
            help="forward_pre, forward, backward_pre or backward; at the end of a step parameter, gradient"
            " or metric. May be given several times.  [forward]",
        ),
        click.option(
            "--payload",
            type=click.Choice(_PAYLOADS),
            default=payload,
            help=f"How much of each value.  [{payload}]",
        ),
        click.option(
            "--sample", type=_COUNT, metavar="N", help="Statistics of at most N elements of a tensor.  [all]"
        ),
        click.option(
            "--index", default="", metavar="S", help="A part of each tensor, such as '[:, -1, :]'.  [all]"
        ),
        click.option(
            "--dtype", metavar="D", help="Cast whole tensors on the server, such as to float16.  [their own]"
        ),
    ]


def _when() -> list[Callable[[Any], Any]]:
    """Which of the calls."""
    return [
        click.option("--every", type=_COUNT, default=1, metavar="N", help="Only steps that N divides."),
        click.option("--start", type=_STEP, metavar="N", help="First step that is watched."),
        click.option("--stop", type=_COUNT, metavar="N", help="First step that is watched no more."),
        click.option("--first-call", is_flag=True, help="Only the first call of a module in a step."),
        click.option(
            "--phase",
            type=click.Choice(_PHASES),
            help="Only in training mode with gradients on, or only otherwise.  [both]",
        ),
        click.option(
            "--max-rate",
            type=_ABOVE_ZERO,
            metavar="N",
            help="Leave out whole steps beyond N events a second, on average.",
        ),
    ]


def _pressure() -> list[Callable[[Any], Any]]:
    """What gives way where events come faster than they are taken."""
    return [
        click.option(
            "--overflow",
            type=click.Choice(_OVERFLOWS),
            default="drop_oldest",
            metavar="O",
            help="Where the queue is full: drop_oldest, drop_newest, disconnect (end with an error),"
            " block (training waits).  [drop_oldest]",
        ),
        click.option("--queue", type=_COUNT, metavar="N", help="How many events wait.  [the server's]"),
        click.option(
            "--block-ms",
            type=_ABOVE_ZERO,
            metavar="X",
            help="With block: how long training waits at most in a step, where the server allows it.",
        ),
    ]


def limit_options(verb: F) -> F:
    """`--count N` and `--duration TIME`, given to the verb as `count` and `duration`."""
    count = click.option("--count", type=_COUNT, metavar="N", help="End after so many events.")
    duration = click.option("--duration", type=DURATION, metavar="TIME", help="End after so long: 30s, 5m.")
    return count(duration(verb))
