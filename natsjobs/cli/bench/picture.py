"""The picture of a benchmark: how many times better than what a row is compared with, as bars (SVG).

It brings its colours for light and dark pages, and is as wide as a README.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from natsjobs.cli.bench.catalog import COLUMNS
from natsjobs.cli.bench.report import Result

_WIDTH, _LEFT, _RIGHT, _LINE, _TOP = 900, 440, 790, 24, 64
_TICKS = 10
_SUBTITLE = "Compared with the same design on Redis, unless the row says so. To the right of the line is better."
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; } .title { font-weight: 600; font-size: 15px; }
.quiet { fill: #57606a; font-size: 12px; } .page { fill: #ffffff; } .grid { stroke: #d0d7de; } .one { stroke: #24292f; }
.ahead { fill: #1a7f64; } .behind { fill: #bc4c00; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .quiet { fill: #9198a1; } .page { fill: #0d1117; } .grid { stroke: #30363d; }
.one { stroke: #e6edf3; } .ahead { fill: #3fb68b; } .behind { fill: #f0883e; }
}
"""


def gain(result: Result) -> float | None:
    """How many times better: above 1 is ahead."""
    if result.ratio is None or result.ratio <= 0:
        return None
    return result.ratio if COLUMNS[result.row.ours.column].better == "more" else 1 / result.ratio


def _absolute(result: Result) -> bool:
    return result.row.reach is not None and result.row.reach.unit != ""


def _times(power: int) -> str:
    return f"{2**power}×" if power >= 0 else f"1/{2**-power}"


def picture(results: Sequence[Result]) -> str:
    """The bars, on a logarithmic scale: to the right of the line is ahead."""
    shown = [(one, value) for one in results if not _absolute(one) and (value := gain(one)) is not None]
    most = max([2.0, *(value for _, value in shown)])
    least = min([0.5, *(value for _, value in shown)])
    low, high = math.floor(math.log2(least)), math.ceil(math.log2(most))
    height = _TOP + _LINE * len(shown) + 34

    def place(value: float) -> float:
        return _LEFT + (math.log2(value) - low) / (high - low) * (_RIGHT - _LEFT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{height}"/>',
        '<text class="title" x="16" y="26">natsjobs: how many times better</text>',
        f'<text class="quiet" x="16" y="44">{_SUBTITLE}</text>',
    ]
    for power in range(low, high + 1):
        if power % math.ceil((high - low) / _TICKS):
            continue
        x = place(2.0**power)
        line = "one" if power == 0 else "grid"
        parts.append(
            f'<line class="{line}" x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - 28}"/>'
            f'<text class="quiet" x="{x:.1f}" y="{height - 12}" text-anchor="middle">{_times(power)}</text>'
        )
    for number, (one, value) in enumerate(shown):
        y, x = _TOP + _LINE * number, min(place(1), place(value))
        parts.append(
            f'<text x="16" y="{y + 13}">{escape(one.row.what)}</text>'
            f'<rect class="{"ahead" if value >= 1 else "behind"}" x="{x:.1f}" y="{y}" rx="2" '
            f'width="{max(1.5, abs(place(value) - place(1))):.1f}" height="16"/>'
            f'<text x="{_RIGHT + 16}" y="{y + 13}">{value:.3g}×</text>'
        )
    return "\n".join([*parts, "</svg>\n"])
