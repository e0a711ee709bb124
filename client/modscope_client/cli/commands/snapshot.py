"""`modscope snapshot`: a whole run saved at one step, and brought back."""

from __future__ import annotations

from typing import Any

import click

from modscope_client.cli.arguments import SNAPSHOT_NAME, change_options
from modscope_client.cli.change_views import SNAPSHOTS
from modscope_client.cli.messages import note
from modscope_client.cli.operations import emit_operation
from modscope_client.cli.render import emit, emit_document
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import byte_count, one_line
from modscope_client.cli.verbs import VerbGroup
from modscope_client.types import Snapshot

__all__ = ["command"]

_DIRECTORY = "Directory on the server's host below which it lies."


@click.group(
    "snapshot", cls=VerbGroup, examples=("modscope snapshot save before", "modscope snapshot restore before")
)
def command() -> None:
    """Save a whole run at one step, and go back to it.

    Model, buffers, optimizers, random states, the extras given to attach, training flags and step
    count.
    """


@command.command(
    "save",
    examples=("modscope snapshot save before", "modscope snapshot save before --directory /data/snapshots"),
)
@click.argument("name")
@click.option("--directory", metavar="D", help="Write it below this directory of the server's host.")
@click.option("--replace", is_flag=True, help="Replace one of the same name.")
@click.pass_obj
def save(settings: Settings, name: str, directory: str | None, replace: bool) -> None:
    """Save a snapshot, at a step boundary.

    In the memory of the training process, or as safetensors and JSON below a directory.
    """
    with settings.remote_model() as model:
        _emit(settings, "saved", model.save_snapshot(name, directory, replace))


@command.command("list", examples=("modscope snapshot list", "modscope snapshot list -o name"))
@click.option("--directory", metavar="D", help="List those below this directory too.")
@click.pass_obj
def list_(settings: Settings, directory: str | None) -> None:
    """List the snapshots, oldest first."""
    with settings.remote_model() as model:
        emit(settings.output, SNAPSHOTS, model.snapshots(directory), nothing="there is no snapshot")


@command.command("restore", examples=("modscope snapshot restore before",))
@click.argument("name", type=SNAPSHOT_NAME)
@click.option("--directory", metavar="D", help=_DIRECTORY)
@change_options
@click.pass_obj
def restore(settings: Settings, /, name: str, directory: str | None, **change: Any) -> None:
    """Go back to a snapshot.

    All of it at one step boundary, or nothing. This is an operation, which 'modscope undo' undoes.
    """
    with settings.remote_model() as model:
        emit_operation(settings.output, model.restore_snapshot(name, directory, **change))


@command.command("drop", examples=("modscope snapshot drop before",))
@click.argument("name", type=SNAPSHOT_NAME)
@click.pass_obj
def drop(settings: Settings, name: str) -> None:
    """Let a snapshot go; one in a directory is deleted there."""
    with settings.remote_model() as model:
        _emit(settings, "dropped", model.drop_snapshot(name))


def _emit(settings: Settings, done: str, snapshot: Snapshot) -> None:
    where = f" in {one_line(snapshot.directory)}" if snapshot.directory else ""
    size = byte_count(snapshot.bytes)
    text = f"{done} {one_line(snapshot.name)}, {size}, of step {snapshot.step:,}{where}\n"
    emit_document(settings.output, snapshot, name=snapshot.name, text=lambda: text)
    for told in snapshot.notes:
        note(told)
