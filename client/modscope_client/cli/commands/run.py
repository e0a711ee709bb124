"""`modscope run`: the training run told of, paused, stepped, and stopped by breaks."""

from __future__ import annotations

import click

from modscope_client.cli.messages import note
from modscope_client.cli.render import emit, emit_document
from modscope_client.cli.run_text import BREAKS, break_text, emit_paused, emit_status
from modscope_client.cli.settings import DURATION, Settings
from modscope_client.cli.verbs import VerbGroup

__all__ = ["command"]

_LEASE_SECONDS = 600.0
"""Long, for nobody renews it: this process ends."""


@click.group("run", cls=VerbGroup, examples=("modscope run status", "modscope run break 'loss != loss'"))
def command() -> None:
    """Tell what the training run does; pause it, step it, set breaks.

    A paused run serves every verb. Each pause has a lease, at whose end the run goes on by itself.
    """


@command.command("status", examples=("modscope run status", "modscope run status --history 20 -o json"))
@click.option("--history", type=click.IntRange(min=-1), default=0, metavar="N", help="Points of each metric.")
@click.pass_obj
def status(settings: Settings, history: int) -> None:
    """Tell what the run does, what it has reported, what holds it.

    Each reported metric with its last value, or with the last N; -1 gives all that are kept.
    """
    with settings.client() as client:
        emit_status(settings.output, client.run.status(history))


@command.command("pause", examples=("modscope run pause", "modscope run pause --lease 2h"))
@click.option("--lease", type=DURATION, default=_LEASE_SECONDS, metavar="TIME", help="Resume then.  [10m]")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is paused.")
@click.pass_obj
def pause(settings: Settings, lease: float, no_wait: bool) -> None:
    """Pause the run at its next step boundary.

    Ends when it is paused; where that is not so within --timeout, the wish is withdrawn and the exit
    code is 7. A run that is paused already gets the new lease.
    """
    with settings.client() as client:
        emit_status(settings.output, client.run.pause(lease, wait=not no_wait).status)


@command.command("resume", examples=("modscope run resume",))
@click.pass_obj
def resume(settings: Settings) -> None:
    """Let the run go on, whoever paused it."""
    with settings.client() as client:
        emit_status(settings.output, client.run.resume())


@command.command("step", examples=("modscope run step", "modscope run step 100 --lease 1h"))
@click.argument("n", type=click.IntRange(min=1), default=1)
@click.option("--lease", type=DURATION, metavar="TIME", help="Of the next pause.  [that of this one, or 10m]")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is paused again.")
@click.pass_obj
def step(settings: Settings, n: int, lease: float | None, no_wait: bool) -> None:
    """Let the run go on for N iterations and pause it again.

    Ends when it is paused again, by a break perhaps; with 7 where no step comes within --timeout.
    """
    with settings.client() as client:
        if lease is None and client.run.status().pause is None:
            lease = _LEASE_SECONDS
        found = client.run.step(n, wait=not no_wait, lease=lease)
        (emit_status if no_wait else emit_paused)(settings.output, found)


@command.command(
    "break",
    examples=(
        "modscope run break 'loss != loss'",
        "modscope run break 'grad.norm(encoder.*) > 10 and step >= 100' --lease 8h",
    ),
)
@click.argument("expression", metavar="EXPR")
@click.option("--lease", type=DURATION, default=_LEASE_SECONDS, metavar="TIME", help="Resume then.  [10m]")
@click.pass_obj
def break_(settings: Settings, expression: str, lease: float) -> None:
    """Pause the run when a condition holds.

    It is looked at at each step boundary: over reported metrics, the step, and statistics of tensors.
    'modscope run wait' waits for it.
    """
    with settings.client() as client:
        found = client.run.break_when(expression, lease)
    emit_document(settings.output, found, name=found.id, text=lambda: break_text(found))
    for text in found.notes:
        note(text)


@command.command("breaks", examples=("modscope run breaks", "modscope run breaks -o name"))
@click.pass_obj
def breaks(settings: Settings) -> None:
    """List the breaks that are set."""
    with settings.client() as client:
        emit(settings.output, BREAKS, client.run.breaks(), nothing="no break is set")


@command.command("clear", examples=("modscope run clear", "modscope run clear b-1 b-2"))
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.pass_obj
def clear(settings: Settings, ids: tuple[str, ...]) -> None:
    """Take breaks away, those of these IDs or all; prints what they were."""
    with settings.client() as client:
        emit(settings.output, BREAKS, client.run.clear(*ids), nothing="no break was set")


@command.command("wait", examples=("modscope run wait", "modscope run wait --timeout 1h"))
@click.pass_obj
def wait(settings: Settings) -> None:
    """Wait until the run is paused, and tell why.

    For as long as it takes, or for --timeout: then the exit code is 7. It is 5 where the training
    ends before.
    """
    with settings.client() as client:
        emit_paused(settings.output, client.run.wait(settings.timeout))
