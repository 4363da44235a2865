"""Tables for people: fitted to a terminal and with bold heads there, plain text where output is piped."""

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console, JustifyMethod
from rich.table import Table

UNLIMITED = 10_000
"""The width of output that is piped: no line is broken, for programs that read it."""


def console(stream: TextIO | None = None) -> Console:
    """Return a console on a stream, or on standard output, that prints text as it is, without markup."""
    file = stream or sys.stdout
    terminal = file.isatty()
    width = None if terminal else UNLIMITED
    return Console(
        file=stream, force_terminal=terminal, width=width, markup=False, highlight=False, emoji=False
    )


def table(heads: Sequence[str], rows: Iterable[Iterable[object]], align: Sequence[JustifyMethod]) -> str:
    """Return a table as text for standard output, with escape codes only if that is a terminal.

    `align` has one word per column. Cells that do not fit are broken; nothing is cut off.
    """
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for head, side in zip(heads, align, strict=True):
        grid.add_column(head, justify=side, overflow="fold")
    for row in rows:
        grid.add_row(*map(str, row))
    output = console()
    with output.capture() as captured:
        output.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
