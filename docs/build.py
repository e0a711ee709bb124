"""Renew docs/cli.md from the program's own help, follow the links, run the pages' Python.

    python docs/build.py            writes docs/cli.md
    python docs/build.py --check    fails instead, where docs/cli.md is not current

Python blocks: `pycon` sessions are run as doctests; `python run` blocks of a page are run one after
another; any other `python` block must compile.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "docs" / "cli.md"
WIDTH = 100
FENCE = re.compile(r"^```(\w*)[ \t]*(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
RUN_SCRIPT = "import runpy; runpy.run_path('page', run_name='__main__')"
RUN_SESSION = """
import doctest, sys
flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
sys.exit(doctest.testfile("page", module_relative=False, optionflags=flags).failed > 0)
"""
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Does all three and gives 1 where anything is wrong, which it prints."""
    parser = argparse.ArgumentParser(description="Renew and check the pages.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    wrong = list(renew(CLI, command_reference(), write=not options.check))
    for page in pages():
        wrong += broken_links(page)
        wrong += failing_python(page)
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(pages())} pages, {len(wrong)} faults")
    return 1 if wrong else 0


def pages() -> list[Path]:
    """Every page that is part of the project."""
    folders = ("docs", "server", "client", "proto", "examples", "benchmarks", "tests")
    below = (page for folder in folders for page in (ROOT / folder).rglob("*.md"))
    return sorted([*ROOT.glob("*.md"), *below])


def renew(page: Path, text: str, write: bool) -> Iterator[str]:
    """Writes the page, or tells where it is not current."""
    if page.exists() and page.read_text() == text:
        return
    if write:
        page.write_text(text)
    else:
        yield f"{page.relative_to(ROOT)} is not current: run make docs"


def command_reference() -> str:
    """The help of the program and of each verb, as a page."""
    from modscope_client.cli.main import program

    parts = ["# The command line\n\nWritten by `make docs` from the program's own help; do not edit.\n"]
    for name, text in helps(program, None, "modscope"):
        parts.append(f"## {name}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def helps(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    """Name and help of a command and of all below it."""
    context = click.Context(command, parent, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    yield context.command_path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None:
                yield from helps(found, context, below)


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page to files or headings that are not there; other sites are not asked."""
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{page.relative_to(ROOT)}: link to {target}: there is no such file"
        elif anchor and anchor not in anchors(file):
            yield f"{page.relative_to(ROOT)}: link to {target}: there is no such heading"


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    titles = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def failing_python(page: Path) -> Iterator[str]:
    """Python of a page that does not compile, or does not run as it says."""
    text = page.read_text()
    name = str(page.relative_to(ROOT))
    script: list[str] = []
    session: list[str] = []
    for block in FENCE.finditer(text):
        language, mark, code = block.groups()
        line = text[: block.start(3)].count("\n")
        if language == "pycon":
            session.append(code)
        elif language == "python":
            try:
                compile("\n" * line + code, name, "exec")
            except SyntaxError as error:
                yield f"{name}:{error.lineno}: {error.msg}"
            if mark == "run":
                script.append(code)
    if session:
        yield from run(name, RUN_SESSION, "\n".join(session))
    if script:
        yield from run(name, RUN_SCRIPT, "\n".join(script))


def run(name: str, runner: str, code: str) -> Iterator[str]:
    """Runs the code in a process, a folder and a runtime directory of its own; tells of a failure."""
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        Path(folder, "page").write_text(code)
        done = subprocess.run(
            [sys.executable, "-c", runner],
            cwd=folder,
            env=os.environ | {"MODSCOPE_RUNTIME_DIR": f"{folder}/run"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    if done.returncode:
        yield f"{name}: its Python fails\n{done.stdout}{done.stderr}"


if __name__ == "__main__":
    sys.exit(main())
