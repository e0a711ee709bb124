"""Verbs as click commands: global options after the verb, examples in the help, suggestions, late imports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from modscope_client.cli.settings import GlobalOption, global_options

__all__ = ["HELP", "LazyGroup", "ListingGroup", "UnknownVerb", "Verb", "VerbGroup"]

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""click settings that every command shares."""


class Verb(click.Command):
    """A verb: takes the global options too, and shows examples in its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        attributes.setdefault("context_settings", HELP)
        super().__init__(*args, **attributes)
        self.examples = tuple(examples)
        self.params.extend(global_options())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the verb's own options, the global ones by name, then the examples."""
        _write_options(self, ctx, formatter)
        _write_examples(formatter, self.examples)


def _write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    records = [
        record
        for parameter in command.get_params(ctx)
        if isinstance(parameter, click.Option) and not isinstance(parameter, GlobalOption)
        if (record := parameter.get_help_record(ctx)) is not None
    ]
    if records:
        with formatter.section("Options"):
            formatter.write_dl(records)
    with formatter.section("Global options"):
        formatter.write_text("--address, --token-file, --model, --timeout, -o: see 'modscope --help'.")


def _write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}$ {example}\n")


class UnknownVerb(click.UsageError):
    """A word that is no verb; `hint` names the verbs that are spelt much like it."""

    def __init__(self, word: str, close: Sequence[str], ctx: click.Context) -> None:
        super().__init__(f"{ctx.command_path} has no verb {word!r}", ctx)
        likely = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        self.hint = f"{likely}'{ctx.command_path} --help' lists the verbs"


class VerbGroup(click.Group):
    """A group that suggests the verb that was meant, and shows its help where none is given."""

    command_class = Verb

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        attributes.setdefault("context_settings", HELP)
        attributes.setdefault("subcommand_metavar", "VERB [ARGUMENTS]")
        attributes |= {"invoke_without_command": True, "no_args_is_help": False}
        super().__init__(*args, **attributes)
        self.examples = tuple(examples)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the help."""
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the verbs, the options, the examples."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)
        if self.examples:
            _write_examples(formatter, self.examples)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the verb; shows the help where there is none."""
        result = super().invoke(ctx)
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())
        return result

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that the first word names; a usage error with the likely one where there is none."""
        if self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches

            close = get_close_matches(args[0], self.list_commands(ctx), n=3, cutoff=0.5)
            raise UnknownVerb(args[0], close, ctx)
        return super().resolve_command(ctx, args)


class ListingGroup(VerbGroup):
    """A group that is a verb too: where no other is given, its own function runs."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.extend(global_options())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the verbs, the options, the examples."""
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)
        _write_examples(formatter, self.examples)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the verb that is given, or the group's own function."""
        return click.Group.invoke(self, ctx)


class LazyGroup(VerbGroup):
    """A group whose verbs are imported when they are typed; their one-line help is known beforehand."""

    def __init__(
        self, *args: Any, package: str, sections: Mapping[str, Mapping[str, str]], **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.package = package
        self.sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the help."""
        return [name for verbs in self.sections.values() for name in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name, imported now; None where there is none."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{self.package}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the verbs by section, without importing one."""
        width = max(len(name) for name in self.list_commands(ctx))
        for title, verbs in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), summary) for name, summary in verbs.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """The verbs that begin so, with their help, without importing one."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=summary)
            for verbs in self.sections.values()
            for name, summary in verbs.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)
