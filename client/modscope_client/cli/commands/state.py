"""`modscope state`: the state_dict listed, saved, loaded."""

from __future__ import annotations

from typing import Any

import click

from modscope_client.cli.arguments import INPUT_FILE, OUTPUT_FILE, change_options
from modscope_client.cli.messages import note
from modscope_client.cli.operations import operation_text
from modscope_client.cli.progress import transfer_bar
from modscope_client.cli.render import emit, emit_document
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import byte_count, one_line, plural
from modscope_client.cli.verbs import VerbGroup
from modscope_client.cli.views import KEYS
from modscope_client.types import LoadResult

__all__ = ["command"]


@click.group(
    "state", cls=VerbGroup, examples=("modscope state save model.safetensors", "modscope state keys -o name")
)
def command() -> None:
    """List, save or load the state_dict.

    Parameters and persistent buffers, under the keys of model.state_dict(), as safetensors.
    """


@command.command("keys", examples=("modscope state keys", "modscope state keys -o name"))
@click.pass_obj
def keys(settings: Settings) -> None:
    """List the keys with dtype, shape and size."""
    with settings.remote_model() as model:
        found = model.state_dict_keys()
    emit(settings.output, KEYS, found.entries, nothing="the state_dict is empty")
    _note_not_carried(found.not_carried)


@command.command("save", examples=("modscope state save model.safetensors",))
@click.argument("file", type=OUTPUT_FILE)
@click.pass_obj
def save(settings: Settings, file: str) -> None:
    """Save the state_dict as a safetensors file.

    All of it is of one step. A transfer that breaks off leaves no file, and one that was there
    before untouched.
    """
    with settings.remote_model() as model, transfer_bar("saving") as progress:
        saved = model.save_state_dict(file, progress=progress)
    size = sum(entry.nbytes for entry in saved.entries)
    count = plural(len(saved.entries), "tensor")
    document = {
        "file": file,
        "tensors": len(saved.entries),
        "bytes": size,
        "step": saved.step,
        "not_carried": saved.not_carried,
    }
    emit_document(
        settings.output,
        document,
        name=file,
        text=lambda: f"saved {count}, {byte_count(size)}, of step {saved.step:,} to {file}\n",
    )
    _note_not_carried(saved.not_carried)


@command.command(
    "load",
    examples=("modscope state load model.safetensors", "modscope state load part.safetensors --no-strict"),
)
@click.argument("file", type=INPUT_FILE)
@click.option(
    "--strict/--no-strict", default=True, help="Refuse missing and unexpected keys, or take what fits."
)
@change_options
@click.pass_obj
def load(settings: Settings, /, file: str, strict: bool, **change: Any) -> None:
    """Load a safetensors file into the model.

    All of it at one step boundary, or nothing. Keys are those of model.state_dict(), with the
    prefixes of wrappers or without.
    """
    with settings.remote_model() as model, transfer_bar("loading") as progress:
        result = model.load_state_dict(file, strict, progress=progress, **change)
    emit_document(settings.output, result, name=result.operation.id, text=lambda: _load_text(result))
    for text in result.operation.notes:
        note(text)


def _load_text(result: LoadResult) -> str:
    lists = (("missing", result.missing_keys), ("unexpected", result.unexpected_keys))
    keys = "".join(f"  {kind}  {one_line(key)}\n" for kind, found in lists for key in found)
    return operation_text(result.operation, paths=False) + keys


def _note_not_carried(keys: tuple[str, ...]) -> None:
    if keys:
        note(f"not carried, for they are no tensors: {', '.join(keys)}")
