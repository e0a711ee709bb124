"""The global options, accepted before the verb and after it, and the connection that they describe."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from modscope_client.cli.text import parse_duration

if TYPE_CHECKING:
    from typing import TypeAlias

    from modscope_client.client import Client
    from modscope_client.handles import RemoteModel

    _FloatType: TypeAlias = click.ParamType[float]
else:
    _FloatType = click.ParamType

__all__ = ["DURATION", "FORMATS", "GlobalOption", "Output", "Settings", "global_options", "peek_output"]

Output = Literal["table", "json", "jsonl", "yaml", "name"]
FORMATS: tuple[Output, ...] = ("table", "json", "jsonl", "yaml", "name")


@dataclass
class Settings:
    """What the global options say; one for each run of the program."""

    address: str | None = None
    """unix:/path or host:port; None leaves it to MODSCOPE_ADDRESS, then to the only server on this host."""
    token_file: str | None = None
    """File with the token; None leaves it to MODSCOPE_TOKEN, then to what the server on this host left."""
    tls: bool = False
    """Whether to speak TLS; False leaves it to what the server on this host left."""
    ca_file: str | None = None
    """PEM of the authority that the server's certificate is checked against; None means the system's."""
    insecure: bool = False
    """Whether a token may travel unencrypted to another host."""
    model: str | None = None
    """Name of the model; None means the only one."""
    timeout: float | None = None
    """Seconds that a call may take; None leaves it to the client."""
    output: Output = "table"
    """How records are written to stdout."""

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A connection, closed afterwards."""
        from modscope_client.client import connect

        if self.address is not None:
            _check_address(self.address)
        if not gc.isenabled():  # by __main__, for the time of the imports
            gc.freeze()
            gc.enable()
        options: dict[str, Any] = {}
        if self.token_file is not None:
            options["token"] = _read_token(self.token_file)
        if self.timeout is not None:
            options["timeout"] = self.timeout
        if self.tls or self.ca_file is not None:
            options["tls"] = self.ca_file or True
        if self.insecure:
            options["insecure"] = True
        with connect(self.address, **options) as client:
            yield client

    @contextmanager
    def remote_model(self) -> Iterator[RemoteModel]:
        """The model that --model names, over a connection that is closed afterwards."""
        with self.client() as client:
            yield client.model(self.model) if self.model is not None else client.model()


def _check_address(address: str) -> None:
    from modscope_client.address import parse_address
    from modscope_client.errors import InvalidArgument

    try:
        parse_address(address)
    except InvalidArgument as error:
        raise click.BadParameter(f"{error.message}: {error.hint}", param_hint="--address") from None


def _read_token(file: str) -> str:
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"cannot read {file!r}: {error}", param_hint="--token-file") from None
    if not token:
        raise click.BadParameter(f"{file!r} is empty", param_hint="--token-file")
    return token


class _Duration(_FloatType):
    """A duration such as 500ms, 10s or 2m, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} is no time at all: give more than 0", param, ctx)
        return seconds


DURATION = _Duration()


class GlobalOption(click.Option):
    """An option that every verb takes; it goes into the run's Settings, not to the verb."""

    def __init__(self, *names: str, **attributes: Any) -> None:
        super().__init__(list(names), expose_value=False, callback=_settle, **attributes)


def _settle(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value is not None and parameter.name is not None:
        setattr(context.find_root().obj, parameter.name, value)


def global_options() -> list[click.Parameter]:
    """The global options, new for each command that takes them."""
    return [
        GlobalOption("--address", metavar="A", help="Server: unix:/path or host:port.  [MODSCOPE_ADDRESS]"),
        GlobalOption("--token-file", metavar="F", help="File that holds the token.  [MODSCOPE_TOKEN]"),
        GlobalOption(
            "--tls", is_flag=True, default=None, help="Speak TLS, trusting the system's authorities."
        ),
        GlobalOption("--ca-file", metavar="F", help="Speak TLS, trusting the authority in this PEM file."),
        GlobalOption(
            "--insecure", is_flag=True, default=None, help="Let the token travel unencrypted to another host."
        ),
        GlobalOption("--model", metavar="NAME", help="Which model, where a server has several."),
        GlobalOption("--timeout", type=DURATION, metavar="TIME", help="Longest wait: 500ms, 10s, 2m.  [10s]"),
        GlobalOption(
            "-o",
            "--output",
            type=click.Choice(FORMATS),
            metavar="FORMAT",
            help=f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}.  [table]",
        ),
    ]


def peek_output(arguments: list[str]) -> Output:
    """The output format that a command line asks for, read without parsing it, for errors of parsing."""
    found: Output = "table"
    for position, argument in enumerate(arguments):
        if argument == "--":
            break
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        value = (
            following
            if argument in ("-o", "--output")
            else argument.removeprefix("--output=").removeprefix("-o")
            if argument.startswith(("--output=", "-o"))
            else ""
        )
        if value in FORMATS:
            found = value
    return found
