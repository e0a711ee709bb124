"""`modscope set`: one tensor written in place."""

from __future__ import annotations

from typing import Any

import click

from modscope_client.cli.arguments import INPUT_FILE, TENSOR_PATH, write_options
from modscope_client.cli.files import read_tensor
from modscope_client.cli.operations import emit_operation
from modscope_client.cli.settings import Settings
from modscope_client.cli.values import array_from_numbers, parse_number, parse_numbers
from modscope_client.cli.verbs import Verb

__all__ = ["command"]


@click.command(
    "set",
    cls=Verb,
    examples=(
        "modscope set head.bias --value '[0.5, 0, 0]'",
        "modscope set head.weight --fill 0",
        "modscope set head.weight --from weight.npy --cast",
    ),
)
@click.argument("path", type=TENSOR_PATH)
@click.option("--value", metavar="JSON", help="Nested lists of numbers, in the target's dtype.")
@click.option("--from", "file", type=INPUT_FILE, metavar="FILE", help="A .npy or .safetensors file.")
@click.option("--fill", metavar="X", help="One number for every element, in the target's dtype.")
@click.option("--cast", is_flag=True, help="Convert a file of another dtype to the target's.")
@click.option("--allow-non-finite", is_flag=True, help="Take nan and the infinities too.")
@write_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    path: str,
    value: str | None,
    file: str | None,
    fill: str | None,
    cast: bool,
    allow_non_finite: bool,
    **change: Any,
) -> None:
    """Write one tensor in place.

    PATH is a parameter or a buffer. At a step boundary, under no_grad, so that the optimizer keeps
    its tensor. The shape must be the target's. In --value, "NaN", "Infinity" and "-Infinity"
    stand for themselves, and a complex number is [real, imaginary], as 'modscope get' prints them.
    """
    if sum(source is not None for source in (value, file, fill)) != 1:
        raise click.UsageError("give exactly one of --value, --from and --fill")
    if cast and file is None:
        raise click.UsageError("--cast goes with --from: --value and --fill take the target's dtype")
    numbers = parse_numbers(value, "--value") if value is not None else None
    number = parse_number(fill, "--fill") if fill is not None else None
    array: Any = read_tensor(file, path) if file is not None else None
    with settings.remote_model() as model:
        if value is not None:
            array = array_from_numbers(numbers, model.tensor(path, stats=False).info.dtype)
        operation = model.write(
            path, array, cast=cast, fill=number, allow_non_finite=allow_non_finite, **change
        )
    emit_operation(settings.output, operation)
