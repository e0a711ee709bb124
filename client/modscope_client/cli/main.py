"""The `modscope` program: its verbs, and the one place where errors become text and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from modscope import __version__
from modscope_client.cli import messages
from modscope_client.cli.serialize import json_line
from modscope_client.cli.settings import Settings, global_options, peek_output
from modscope_client.cli.verbs import HELP, LazyGroup, UnknownVerb

__all__ = ["COMPLETION_VARIABLE", "VERBS", "ErrorReport", "program", "report", "run"]

VERBS: dict[str, dict[str, str]] = {
    "Look": {
        "ps": "List the servers on this host.",
        "models": "List the models that a server has.",
        "ls": "List the immediate children of a module.",
        "tree": "Draw the module tree with its parameter counts.",
        "modules": "List modules by glob and type.",
        "params": "List parameters, with statistics if asked.",
        "buffers": "List buffers.",
        "show": "Show one module, parameter or buffer whole.",
        "get": "Print or save the elements of one tensor.",
    },
    "Change": {
        "set": "Write one tensor in place.",
        "freeze": "Stop the training of parameters.",
        "unfreeze": "Let parameters train again.",
        "reinit": "Initialise parameters anew.",
        "intervene": "Change a value on its way through modules.",
        "state": "List, save or load the state_dict.",
        "optim": "List optimizer groups, set hyper-parameters, add parameters.",
    },
    "Go back": {
        "ops": "List what was changed.",
        "undo": "Put back what an operation changed.",
        "snapshot": "Save a whole run at one step, and go back to it.",
    },
    "Run": {
        "forward": "Run the model on your input.",
        "watch": "Stream what modules see and give while they work.",
        "export": "Feed a monitoring tool from a watch.",
        "record": "Record a watch into FILE.",
        "replay": "Print a recording, or feed it to a monitoring tool.",
        "hooks": "List the hooks that modscope has put on a model.",
        "unhook": "End interventions and watches.",
        "run": "Tell what the training run does; pause it, step it, set breaks.",
    },
    "Set up": {
        "completion": "Print the completion script of a shell.",
    },
}
"""Section of the help -> verb -> its one line; the verb's module has its name."""

COMPLETION_VARIABLE = "_MODSCOPE_COMPLETE"
_USAGE, _OTHER, _INTERRUPTED = 2, 1, 130
_EXIT_CODES = {
    "NOT_FOUND": 3,
    "UNAUTHENTICATED": 4,
    "PERMISSION_DENIED": 4,
    "INVALID_ARGUMENT": 5,
    "FAILED_PRECONDITION": 5,
    "UNAVAILABLE": 6,
    "DEADLINE_EXCEEDED": 7,
}
"""Status name -> exit code; any other status is 1."""
_SHELL_WORDS = {
    "tls=True": "--tls",
    "tls=CA_FILE": "--ca-file FILE",
    "insecure=True": "--insecure",
    "connect(address)": "--address ADDRESS",
    "connect(timeout=...)": "--timeout 60s",
    "force=True": "--force",
    "cast=True": "--cast",
    "allow_non_finite=True": "--allow-non-finite",
    "strict=False": "--no-strict",
    'parameter="weight"': "--param weight",
    "replace=True": "--replace",
    "norm_stats=True": "--norm-stats",
    "base_lr=True": "--base-lr",
    "group=N": "--group N",
    "reset_optimizer=False": "--keep-optimizer-state",
    'block_ms above 0 with overflow "block"': "--block-ms with --overflow block",
    'choose "drop_oldest"': "choose --overflow drop_oldest",
    'dtype with payload "tensor"': "--dtype with --payload tensor",
}
"""What hints call things in Python -> what they are called here."""

program = LazyGroup(
    "modscope",
    package="modscope_client.cli.commands",
    sections=VERBS,
    params=global_options(),
    examples=("modscope tree", "modscope watch '*' --type ReLU", "modscope freeze encoder"),
    help="See inside a live PyTorch model and change it, without stopping it.",
    epilog="'modscope VERB --help' tells more of a verb, with examples.",
    context_settings=HELP,
)
click.version_option(__version__, message="modscope %(version)s")(program)


class ErrorReport(NamedTuple):
    """An error as the program tells it: `-o json` prints these fields."""

    code: str
    """Name of the gRPC status that it has, or would have."""
    reason: str
    """Stable name of what was wrong."""
    message: str
    """What was wrong."""
    hint: str
    """What to do next; "" where there is nothing to say."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the program on the arguments (without its name) and gives its exit code.

    Raises nothing, unless MODSCOPE_DEBUG is set: then an error keeps its traceback.
    A reader of stdout that leaves early (`| head`) ends it quietly, with 0.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    settings = Settings(output=peek_output(words))
    try:
        code = _invoke(words, settings)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _abandon_stdout()
        return 0
    except (KeyboardInterrupt, click.Abort):
        return _tell(ErrorReport("CANCELLED", "INTERRUPTED", "interrupted", ""), _INTERRUPTED, settings)
    except Exception as error:
        if os.environ.get("MODSCOPE_DEBUG"):
            raise
        return _tell(*report(error), settings)


def _invoke(words: list[str], settings: Settings) -> int:
    """Parses and runs, or answers a shell that asks for completions."""
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(program, {"obj": settings}, "modscope", COMPLETION_VARIABLE, instruction)
    try:
        with program.make_context("modscope", words, obj=settings) as context:
            program.invoke(context)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    return 0


def report(error: Exception) -> tuple[ErrorReport, int]:
    """What to tell of an error, and the exit code."""
    from modscope_client.errors import ModscopeError

    if isinstance(error, ModscopeError):
        told = ErrorReport(error.code, error.reason, error.message, _in_shell_words(error.hint))
        return told, _EXIT_CODES.get(error.code, _OTHER)
    if isinstance(error, click.UsageError):
        return ErrorReport("INVALID_ARGUMENT", "USAGE", error.format_message(), _usage_hint(error)), _USAGE
    if isinstance(error, click.ClickException):
        return ErrorReport("UNKNOWN", "FAILED", error.format_message(), ""), error.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return ErrorReport("UNKNOWN", "FILE", f"{where}{error.strerror or error}", ""), _OTHER
    hint = "this is a fault of modscope's own: MODSCOPE_DEBUG=1 shows where"
    return ErrorReport("INTERNAL", "INTERNAL", f"{type(error).__name__}: {error}", hint), _OTHER


def _in_shell_words(hint: str) -> str:
    for python, shell in _SHELL_WORDS.items():
        hint = hint.replace(f"{python} ({shell})", shell).replace(python, shell)
    return hint


def _usage_hint(error: click.UsageError) -> str:
    if isinstance(error, UnknownVerb):
        return error.hint
    path = error.ctx.command_path if error.ctx else "modscope"
    if "unexpected extra argument" in error.message:
        return f"did the shell expand a glob? write '*' in quotes; see '{path} --help'"
    return f"see '{path} --help'"


def _tell(told: ErrorReport, exit_code: int, settings: Settings) -> int:
    """Writes the error to stderr, after all that stdout holds; gives the exit code."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
    if settings.output in ("json", "jsonl"):
        click.echo(json_line(told._asdict()), err=True, nl=False)
        return exit_code
    messages.fail(told.message)
    if told.hint:
        messages.hint(told.hint)
    return exit_code


def _abandon_stdout() -> None:
    """Sends what stdout still holds nowhere, so that the interpreter's last flush is quiet too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
