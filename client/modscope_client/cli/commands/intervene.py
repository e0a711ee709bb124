"""`modscope intervene`: a value changed on its way through modules."""

from __future__ import annotations

from typing import Any

import click

from modscope_client.cli.arguments import INPUT_FILE, MODULE_PATH, type_option
from modscope_client.cli.files import read_tensor
from modscope_client.cli.intervention_text import intervention_text
from modscope_client.cli.messages import note
from modscope_client.cli.render import emit_document
from modscope_client.cli.settings import DURATION, Settings
from modscope_client.cli.verbs import Verb

__all__ = ["command"]

_ACTIONS = ("scale", "add", "clamp", "zero", "replace", "noise")
_STEP = click.IntRange(min=0)


@click.command(
    "intervene",
    cls=Verb,
    examples=(
        "modscope intervene mlp --scale 2",
        "modscope intervene encoder.3 --zero --index '[:, -1, :]' --calls 1",
        "modscope intervene 'blocks.*' --type Dropout --hook forward_pre --noise 0.1 --lease 10m",
    ),
)
@click.argument("path", type=MODULE_PATH)
@click.option("--scale", type=float, metavar="X", help="Multiply by X.")
@click.option("--add", type=float, metavar="X", help="Add X.")
@click.option("--clamp", type=float, nargs=2, metavar="LO HI", help="Clamp; -inf or inf for no bound.")
@click.option("--zero", is_flag=True, default=None, help="Set to zero.")
@click.option("--replace", type=INPUT_FILE, metavar="FILE", help="Put a .npy or .safetensors file in place.")
@click.option("--noise", type=float, metavar="STD", help="Add normal noise of this standard deviation.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Of the noise.")
@click.option(
    "--hook",
    type=click.Choice(("forward", "forward_pre")),
    default="forward",
    metavar="H",
    help="forward: what modules give; forward_pre: what they get.  [forward]",
)
@type_option("the modules")
@click.option("--index", default="", metavar="S", help="Which part of the tensor, such as '[:, -1, :]'.")
@click.option("--key", metavar="K", help="Which tensor of several, such as 0, logits or past.0.1.")
@click.option("--calls", type=click.IntRange(min=1), metavar="N", help="So many at each module.")
@click.option("--start", type=_STEP, metavar="N", help="First step at which it acts.")
@click.option("--stop", type=_STEP, metavar="N", help="First step at which it acts no more.")
@click.option("--lease", type=DURATION, metavar="TIME", help="End it then.  [it stays until 'unhook']")
@click.pass_obj
def command(settings: Settings, /, path: str, lease: float | None, **asked: Any) -> None:
    """Change a value on its way through modules.

    PATH is a module, or a glob on module paths. From the next step boundary on, each call's value is
    changed before watches see it; gradients flow as through the same operation in the model. What
    does not fit passes unchanged: 'modscope hooks' tells of it.

    It stays until 'modscope unhook', unless --calls, --stop or --lease ends it.
    """
    given = [name for name in _ACTIONS if asked[name] is not None]
    if len(given) != 1:
        raise click.UsageError(f"give exactly one of {', '.join(f'--{name}' for name in _ACTIONS)}")
    if asked["replace"] is not None:
        asked["replace"] = read_tensor(asked["replace"])
    kind = asked.pop("type_")
    held: dict[str, Any] = {"persist": True} if lease is None else {"lease": lease}
    with settings.remote_model() as model:
        handle = model.intervene(path, type=kind, **{**asked, "zero": bool(asked["zero"])}, **held)
    made = handle.made
    emit_document(settings.output, made, name=made.id, text=lambda: intervention_text(made))
    for text in handle.notes:
        note(text)
