"""`modscope get`: the elements of one tensor."""

from __future__ import annotations

import click

from modscope_client.cli.arguments import OUTPUT_FILE, TENSOR_PATH
from modscope_client.cli.arrays_text import array_text
from modscope_client.cli.files import check_suffix, write_tensor
from modscope_client.cli.messages import say
from modscope_client.cli.render import emit_document
from modscope_client.cli.serialize import tensor_document
from modscope_client.cli.settings import Settings
from modscope_client.cli.text import shape_text
from modscope_client.cli.verbs import Verb

__all__ = ["command"]


@click.command(
    "get",
    cls=Verb,
    examples=(
        "modscope get head.bias",
        "modscope get head.weight --what grad -o json",
        "modscope get head.weight --what exp_avg --out moments.npy",
    ),
)
@click.argument("path", type=TENSOR_PATH)
@click.option(
    "--what",
    default="value",
    metavar="W",
    help="value, grad, or a key of the optimizer's state: exp_avg.  [value]",
)
@click.option("--out", type=OUTPUT_FILE, metavar="FILE", help="Write it there instead: .npy or .safetensors.")
@click.pass_obj
def command(settings: Settings, path: str, what: str, out: str | None) -> None:
    """Print or save the elements of one tensor.

    PATH is a parameter or a buffer. A large tensor is printed in part; -o json gives all of it,
    as nested lists with dtype, shape and step, a complex number as [real, imaginary].
    """
    if out is not None:
        check_suffix(out, ".npy", ".safetensors")
    with settings.remote_model() as model:
        array, step = model.read(path, what, with_step=True)
    if out is None:
        document = None if settings.output == "table" else {"path": path, **tensor_document(array, step=step)}
        emit_document(settings.output, document, name=path, text=lambda: array_text(path, array, step))
        return
    write_tensor(out, path, array)
    say(f"wrote {array.dtype} {shape_text(array.shape)} of step {step:,} to {out}")
