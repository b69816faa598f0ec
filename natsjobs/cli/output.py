"""What the commands print: lines, tables, ages. Pure but for ``complain`` and ``emit_json``; no colours on a pipe.

Everything that comes from a job goes through ``printable``: an id or an error text may hold any character, and a
terminal obeys some of them.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console
from rich.text import Text

_STATUS_STYLE = {"running": "cyan", "complete": "green", "error": "red", "aborted": "yellow", "ok": "green"}


def printable(text: object) -> str:
    """The text on one line, control characters written out."""
    plain = " ".join(str(text).splitlines())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in plain)


def complain(message: object) -> None:
    """One line on stderr."""
    print(f"natsjobs: {printable(message)}", file=sys.stderr, flush=True)


def emit_json(value: Any) -> None:
    """One line of JSON on stdout, at once."""
    emit_raw(msgspec.json.encode(value))


def emit_raw(raw: bytes) -> None:
    """One line of JSON that is encoded already, at once."""
    if b"\n" in raw:
        raw = msgspec.json.format(raw, indent=-1)
    sys.stdout.buffer.write(raw + b"\n")
    sys.stdout.buffer.flush()


def age(then_ms: int | None, now: float) -> str:
    """How long ago, for people: ``3 m ago``."""
    if then_ms is None:
        return "-"
    return f"{span(now - then_ms / 1000)} ago"


def span(seconds: float) -> str:
    """A time span, for people: ``3 m``."""
    seconds = max(0, round(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def size(count: int) -> str:
    """A size in bytes, for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def print_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    shrink: Sequence[int] = (0,),
    console: Console | None = None,
) -> None:
    """Columns of text. On a terminal the ``shrink`` columns are cut to its width; on a pipe nothing is cut."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max([cell_len(h), *(cell_len(row[i]) for row in cells)]) for i, h in enumerate(head)]
    console = console or Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        _shrink(widths, shrink, shutil.get_terminal_size().columns - 2 * (len(head) - 1))
    for number, row in enumerate([list(head), *cells]):
        line = Text(style="bold" if number == 0 else "")
        for i, cell in enumerate(row):
            shown = cell if cell_len(cell) <= widths[i] else set_cell_size(cell, widths[i] - 1) + "…"
            line.append(set_cell_size(shown, widths[i] + 2), style=_STATUS_STYLE.get(cell.split(" ")[0], ""))
        line.rstrip()
        console.print(line, soft_wrap=True)


def _shrink(widths: list[int], columns: Sequence[int], room: int) -> None:
    for column in columns:
        excess = sum(widths) - room
        if excess > 0:
            widths[column] = max(8, widths[column] - excess)


def print_fields(fields: Sequence[tuple[str, object]]) -> None:
    """``name  value`` lines; absent values are left out. Long values go on below their own column."""
    shown = [(name, printable(value)) for name, value in fields if value is not None]
    indent = max((cell_len(name) for name, _ in shown), default=0) + 2
    console = Console(highlight=False, soft_wrap=True)
    room = max(20, shutil.get_terminal_size().columns - indent) if console.is_terminal else 10**9
    for name, value in shown:
        pieces = chop_cells(value, room) or [""]
        line = Text(name.ljust(indent), style="bold")
        line.append(pieces[0], style=_STATUS_STYLE.get(value.split(" ")[0], "not bold"))
        console.print(line)
        for piece in pieces[1:]:
            console.print(Text(" " * indent + piece))
