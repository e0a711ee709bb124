"""`modscope forward`: the model run on your input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modscope_client.cli.arguments import OUTPUT_FILE
from modscope_client.cli.arrays_text import array_text
from modscope_client.cli.files import check_suffix, read_tensor, write_bytes, write_tensor, write_tensors
from modscope_client.cli.messages import note, say
from modscope_client.cli.render import emit_document
from modscope_client.cli.serialize import json_text
from modscope_client.cli.settings import Settings
from modscope_client.cli.structures import is_tensor, leaves, structure_document
from modscope_client.cli.text import one_line, plural
from modscope_client.cli.verbs import Verb
from modscope_client.errors import InvalidArgument

__all__ = ["command"]


@click.command(
    "forward",
    cls=Verb,
    examples=(
        "modscope forward --input batch.npy",
        "modscope forward --input input_ids=ids.npy --input attention_mask=mask.npy --out logits.safetensors",
        "modscope forward --input batch.npy -o json",
    ),
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]FILE",
    help="An argument, in order or by name: .npy, .safetensors.",
)
@click.option(
    "--mode", type=click.Choice(("eval", "train", "current")), default="eval", help="How to run it.  [eval]"
)
@click.option("--out", type=OUTPUT_FILE, metavar="FILE", help="Write it there: .npy, .safetensors or .json.")
@click.pass_obj
def command(settings: Settings, inputs: tuple[str, ...], mode: str, out: str | None) -> None:
    """Run the model on your input.

    Where it lives, at a step boundary, without gradients; every flag, buffer and random state is
    afterwards as before. A model that returns several tensors needs .safetensors, under names
    such as logits or past.0.1, or .json.
    """
    if out is not None:
        check_suffix(out, ".npy", ".safetensors", ".json")
    args, kwargs = _arguments(inputs)
    with settings.remote_model() as model:
        result = model.forward(*args, mode=mode, **kwargs)
    if out is None:
        emit_document(
            settings.output,
            structure_document(result) if settings.output != "table" else None,
            name="output",
            text=lambda: "\n".join(_leaf_text(key or "output", leaf) for key, leaf in leaves(result)),
        )
        return
    _save(out, result)


def _arguments(inputs: tuple[str, ...]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments out of FILE and NAME=FILE."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in inputs:
        name, separator, file = text.partition("=")
        is_named = bool(separator) and name.isidentifier() and not Path(text).is_file()
        source = file if is_named else text
        if not Path(source).is_file():
            raise click.BadParameter(f"there is no file {source!r}", param_hint="--input")
        if is_named and (name in kwargs or name == "mode"):
            raise click.BadParameter(f"{name!r} cannot be given so, or twice", param_hint="--input")
        if is_named:
            kwargs[name] = read_tensor(source, name)
        else:
            args.append(read_tensor(source))
    return args, kwargs


def _leaf_text(key: str, leaf: Any) -> str:
    return array_text(key, leaf) if is_tensor(leaf) else f"{one_line(key)}  {one_line(str(leaf))}\n"


def _save(out: str, result: Any) -> None:
    suffix = Path(out).suffix
    found = list(leaves(result))
    tensors = {key or "output": leaf for key, leaf in found if is_tensor(leaf)}
    if suffix == ".json":
        document = json_text(structure_document(result))
        write_bytes(out, lambda file: file.write(document.encode()))
    elif suffix == ".npy":
        if not is_tensor(result):
            raise InvalidArgument(
                f"the model returned {plural(len(tensors), 'tensor')} in a {type(result).__name__}",
                hint=".npy holds one bare tensor: use a .safetensors or .json file",
            )
        write_tensor(out, "output", result)
    else:
        write_tensors(out, tensors)
        left = [key or "output" for key, leaf in found if not is_tensor(leaf)]
        if left:
            note(f"left out, for they are no tensors: {', '.join(left)}")
    say(f"wrote {plural(len(tensors), 'tensor')} to {out}")
