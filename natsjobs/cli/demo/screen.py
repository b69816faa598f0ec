"""What people see of the demo: two browsers, a timeline, a progress bar; plain lines where there is no terminal.

Owns the picture, not the events: ``Scene`` is what the script writes into, the screens only read it.
"""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from natsjobs.cli.output import printable
from natsjobs.tasks import Tasks

_FRAME = 0.08
_TIMELINE = 9
_HEADER = 3
_KEPT = 6_000


@dataclass(slots=True)
class Pane:
    """One browser."""

    where: str = "not connected"
    style: str = "dim"
    text: str = ""
    events: int = 0

    def add(self, text: str) -> None:
        """One more event."""
        self.events += 1
        self.text = (self.text + text)[-_KEPT:]


@dataclass(slots=True)
class Scene:
    """Everything there is to see."""

    panes: dict[str, Pane]
    act: str = "starting"
    progress: Callable[[], tuple[float, float, str]] = lambda: (0.0, 1.0, "")
    timeline: list[tuple[float, str, str]] = field(default_factory=list[tuple[float, str, str]])
    begin: float = field(default_factory=time.monotonic)
    on_line: Callable[[float, str], None] | None = None

    @staticmethod
    def empty(browsers: Sequence[str]) -> dict[str, Pane]:
        """A pane for each browser."""
        return {name: Pane() for name in browsers}

    def say(self, text: str, style: str = "") -> None:
        """Something happened."""
        seconds = time.monotonic() - self.begin
        self.timeline.append((seconds, text, style))
        if self.on_line is not None:
            self.on_line(seconds, text)

    def clear(self) -> None:
        """Both browsers open another page."""
        for pane in self.panes.values():
            pane.text, pane.events = "", 0


def shown_on(console: Console, scene: Scene) -> AbstractAsyncContextManager[None]:
    """Show the scene as long as the block runs: live on a terminal, as lines elsewhere."""
    return _live(console, scene) if console.is_terminal else _plain(console, scene)


@asynccontextmanager
async def _plain(console: Console, scene: Scene) -> AsyncGenerator[None, None]:
    def line(seconds: float, text: str) -> None:
        console.print(f"{seconds:6.2f} s  {printable(text)}", highlight=False, markup=False, soft_wrap=True)

    scene.on_line = line
    try:
        yield
    finally:
        scene.on_line = None


@asynccontextmanager
async def _live(console: Console, scene: Scene) -> AsyncGenerator[None, None]:
    async def refresh(live: Live) -> None:
        while True:
            live.update(picture(scene, console), refresh=True)
            await asyncio.sleep(_FRAME)

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        tasks = Tasks()
        tasks.spawn(refresh(live), name="demo screen")
        try:
            yield
        finally:
            await tasks.close()
        live.update(picture(scene, console), refresh=True)


def picture(scene: Scene, console: Console) -> RenderableType:
    """One frame."""
    height = min(max(console.height - 1, 18), 32)
    layout = Layout()
    layout.split_column(
        Layout(_header(scene), name="header", size=_HEADER),
        Layout(name="browsers"),
        Layout(_timeline(scene, console.width), name="timeline", size=_TIMELINE),
    )
    room = height - _HEADER - _TIMELINE - 2
    width = console.width // 2 - 4
    layout["browsers"].split_row(*(Layout(_browser(name, pane, width, room)) for name, pane in scene.panes.items()))
    return _Fixed(layout, height)


class _Fixed:
    """A renderable of a fixed height: a layout alone takes the whole terminal."""

    def __init__(self, inner: RenderableType, height: int) -> None:
        self._inner = inner
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self._inner, options.update_height(self._height))


def _header(scene: Scene) -> RenderableType:
    done, total, label = scene.progress()
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    row.add_row(
        Text(scene.act, style="bold"),
        ProgressBar(total=max(total, 1e-9), completed=min(done, total), complete_style="green"),
        label,
    )
    seconds = time.monotonic() - scene.begin
    return Panel(row, title="natsjobs demo", subtitle=f"{seconds:.1f} s", border_style="blue")


def _browser(name: str, pane: Pane, width: int, room: int) -> RenderableType:
    lines: list[str] = []
    for paragraph in pane.text.splitlines():
        lines += textwrap.wrap(printable(paragraph), width) or [""]
    body = Text("\n".join(lines[-room:]))
    return Panel(
        body,
        title=Text(f"{name}: {pane.where}", style=pane.style),
        subtitle=f"{pane.events} events",
        border_style=pane.style,
        padding=(0, 1),
    )


def _timeline(scene: Scene, width: int) -> RenderableType:
    lines: list[Text] = []
    for seconds, what, style in scene.timeline[-(_TIMELINE - 2) :]:
        line = Text()
        line.append(f"{seconds:6.2f} s  ", style="dim")
        line.append(printable(what), style=style or "default")
        line.truncate(width - 4, overflow="ellipsis")
        lines.append(line)
    return Panel(Group(*lines), title="what happens", border_style="blue", padding=(0, 1))
