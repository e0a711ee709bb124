"""Records in columns: a rich table on a terminal, plain aligned columns off it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import IO, TYPE_CHECKING, Generic, TypeVar

from modscope_client.cli.text import NOTHING

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["Column", "plain_lines", "print_table"]

R = TypeVar("R", contravariant=True)

_GAP = "  "
_COMFORTABLE, _NARROWEST = 32, 12
"""Secondary columns go before a flexible one gets less than the first; none is cut below the other."""
_RICH_ROWS = 2000
"""Beyond so many rows a terminal gets plain columns too: rich takes 0.1 ms a cell."""


@dataclass(frozen=True)
class Column(Generic[R]):
    """One column: what stands in it for a record, and how."""

    header: str
    """Its heading, in capitals."""
    text: Callable[[R], str]
    """The cell of a record; "" is shown as a dash."""
    right: bool = False
    """Whether it is set flush right, as numbers are."""
    style: str | Callable[[R], str] = ""
    """rich style of its cells, the same for all or chosen by record."""
    lead: Callable[[R], str] | None = None
    """What stands before the cell, dimmed: the lines of a tree."""
    secondary: int = 0
    """0 for one that always shows; of the others a narrow terminal leaves out the highest first."""
    flexible: bool = False
    """Whether a narrow terminal may cut it, where leaving columns out is not enough."""
    optional: bool = False
    """Whether it is left out where no record has anything in it."""

    def cell(self, record: R) -> str:
        """The whole cell of a record, its lead included."""
        text = self.text(record) or NOTHING
        return self.lead(record) + text if self.lead else text


def print_table(out: IO[str], columns: Sequence[Column[R]], records: Sequence[R]) -> None:
    """Prints the records under headings; on a terminal with colour, cut to its width."""
    columns = [c for c in columns if not c.optional or any(map(c.text, records))]
    rows = [[column.cell(record) for column in columns] for record in records]
    if out.isatty() and len(rows) <= _RICH_ROWS:
        _print_rich(out, columns, records, rows)
        return
    out.writelines(f"{line}\n" for line in plain_lines(columns, rows))


def plain_lines(columns: Sequence[Column[R]], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The heading and the rows as aligned lines, nothing cut, no blanks at the end."""
    headers = [column.header for column in columns]
    widths = _widths(headers, rows)
    for row in chain([headers], rows):
        cells = (
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(row, widths, columns, strict=True)
        )
        yield _GAP.join(cells).rstrip()


def _widths(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[int]:
    widths = [len(header) for header in headers]
    for row in rows:
        widths = [max(width, len(text)) for width, text in zip(widths, row, strict=True)]
    return widths


def _print_rich(
    out: IO[str], columns: Sequence[Column[R]], records: Sequence[R], rows: Sequence[Sequence[str]]
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=out, highlight=False)
    widths = _widths([column.header for column in columns], rows)
    kept = _fitting(columns, widths, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
    for position in kept:
        column = columns[position]
        table.add_column(
            column.header,
            justify="right" if column.right else "left",
            no_wrap=not column.flexible,
            overflow="ellipsis",
            min_width=min(widths[position], _NARROWEST) if column.flexible else None,
        )
    for record, row in zip(records, rows, strict=True):
        table.add_row(*(_rich_cell(columns[i], record, row[i]) for i in kept))
    console.print(table)


def _rich_cell(column: Column[R], record: R, cell: str) -> Text:
    from rich.text import Text

    style = column.style if isinstance(column.style, str) else column.style(record)
    text = Text(cell, style="dim" if cell == NOTHING else style, no_wrap=True, overflow="ellipsis")
    if column.lead:
        text.stylize("not bold dim", 0, len(column.lead(record)))
    return text


def _fitting(columns: Sequence[Column[R]], widths: Sequence[int], available: int) -> list[int]:
    """Positions of the columns to show: secondary ones go, highest and last first, until the rest fits."""
    needed = [
        min(width, _COMFORTABLE) if column.flexible else width
        for width, column in zip(widths, columns, strict=True)
    ]
    kept = list(range(len(columns)))
    for position in sorted(kept, key=lambda i: (columns[i].secondary, i), reverse=True):
        if sum(needed[i] for i in kept) + len(_GAP) * (len(kept) - 1) <= available:
            break
        if columns[position].secondary:
            kept.remove(position)
    return kept
