"""What ``natsjobs bench --help`` says of rows and figures, for somebody who sees them for the first time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from natsjobs.cli.bench.catalog import COLUMNS
from natsjobs.cli.bench.report import other_name, reach_of
from natsjobs.cli.bench.rows import GROUPS, ROWS

_WIDTH = 110
_INTRODUCTION = """
Every row compares one figure of natsjobs, with its default settings unless the row says so, with the same figure of
the peer: the same design on Redis, with one script per event (INCR, XADD, EXPIRE, PUBLISH), a subscriber, and replay by
XRANGE. Events have 150 bytes. "Linger" is how long natsjobs collects events of a job before it stores them together.
In brackets stands which figure it is (they are explained at the end), what it is compared with if not with the peer,
and behind the arrow what is to be reached: by the ratio of natsjobs to the other, or by our own figure if it has a
unit.
"""


def explained() -> str:
    """Paragraphs that are not to be wrapped again, which click knows by their first line."""
    return "\n\n".join("\b\n" + "\n".join(lines) for lines in _paragraphs())


def _paragraphs() -> Iterator[list[str]]:
    yield textwrap.wrap(_INTRODUCTION.strip(), _WIDTH)
    wide = max(map(len, ROWS))
    for group, rows in GROUPS.items():
        yield [
            f"{group}:",
            *(f"  {row.name:{wide}}  {row.what}{_figure(row.name)}" for row in rows),
        ]
    wide = max(map(len, COLUMNS))
    indent = " " * (wide + 4)
    yield [
        "Figures:",
        *(
            line
            for name, one in COLUMNS.items()
            for line in textwrap.wrap(
                f"  {name:{wide}}  {one.meaning} ({one.unit}; {one.better} is better)", _WIDTH, subsequent_indent=indent
            )
        ),
    ]


def _figure(name: str) -> str:
    row = ROWS[name]
    other = other_name(row)
    against = "" if other in {"", "peer"} else f", against {other}"
    return f" [{row.ours.column}{against}{'' if row.reach is None else ' → ' + reach_of(row)}]"
