"""What the command line shows: lines, tables and help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def say(line: str, *, error: bool = False) -> None:
    """Print one line as it is."""
    Console(stderr=error, soft_wrap=True, emoji=False).print(escape(line), highlight=False)


def print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows of equal keys as a table."""
    table = Table(box=None, header_style="bold")
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    Console(emoji=False).print(table)
