"""Curves in a terminal, drawn with characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

#: From empty to full, in eighths; the second for terminals that know ASCII only.
BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:-=+*%#"


def resample(x: Sequence[float], y: Sequence[float], columns: int) -> list[float]:
    """Mean of the finite values in each of ``columns`` equal stretches from 0 to the last x.

    Columns without a value repeat the one before; NaN before the first.

    >>> resample([1, 2, 3, 4], [math.nan, 1.0, 0.0, 0.5], 2)
    [1.0, 0.25]
    """
    last = max(x, default=0.0)
    columns_of: list[list[float]] = [[] for _ in range(columns)]
    for place, value in zip(x, y, strict=True):
        if math.isfinite(value) and last > 0:
            # A point belongs to the stretch that it ends: the last one to the last column.
            column = math.ceil(place / last * columns) - 1
            columns_of[max(0, column)].append(value)
    means, newest = [], math.nan
    for own in columns_of:
        newest = sum(own) / len(own) if own else newest
        means.append(newest)
    return means


def bars(
    values: Sequence[float], rows: int, low: float, high: float, blocks: str = BLOCKS
) -> list[str]:
    """Values as columns of block characters, ``rows`` lines from the top down.

    A value at ``low`` still shows as the smallest bar, so that it differs from none, NaN.

    >>> bars([math.nan, 0.0, 0.5, 1.0], 1, 0.0, 1.0)
    [' ▁▄█']
    """
    full = len(blocks) - 1
    heights = [
        0
        if math.isnan(value)
        else max(1, round((value - low) / ((high - low) or 1.0) * rows * full))
        for value in values
    ]
    return [
        "".join(blocks[min(full, max(0, height - row * full))] for height in heights)
        for row in reversed(range(rows))
    ]


class Sparkline:
    """A curve one line high, for a table; its range is 0 to 1, or more if need be.

    Args:
        x: places, from 0.
        y: values.
        width: columns at most.
    """

    def __init__(self, x: Sequence[float], y: Sequence[float], width: int = 20) -> None:
        self.x, self.y, self.width = x, y, width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw for this console."""
        blocks = ASCII_BLOCKS if options.ascii_only else BLOCKS
        values = resample(self.x, self.y, min(self.width, options.max_width))
        (line,) = bars(values, 1, *_range(self.y), blocks)
        yield Text(line, style="green")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Columns it needs."""
        return Measurement(1, self.width)


class Chart:
    """A curve with its range at the side; as wide as the terminal allows.

    Args:
        label: stands above.
        x: places, from 0.
        y: values; the range shown reaches at least from 0 to 1.
        rows: lines of the curve.
        width: columns at most.
    """

    def __init__(
        self, label: str, x: Sequence[float], y: Sequence[float], rows: int = 3, width: int = 60
    ) -> None:
        self.label = label
        self.x, self.y = x, y
        self.rows, self.width = rows, width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw for this console."""
        finite = [value for value in self.y if math.isfinite(value)]
        low, high = _range(self.y)
        side = max(len(f"{low:g}"), len(f"{high:g}"), 4)
        columns = max(8, min(self.width, options.max_width) - side - 2)
        blocks, wall = (ASCII_BLOCKS, "|") if options.ascii_only else (BLOCKS, "│")
        values = resample(self.x, self.y, columns)
        newest = f": {finite[-1]:.3g}" if finite else ": nothing yet"
        yield Text.assemble((self.label, "cyan"), newest)
        for row, line in enumerate(bars(values, self.rows, low, high, blocks)):
            edge = f"{high:g}" if row == 0 else f"{low:g}" if row == self.rows - 1 else ""
            yield Text.assemble((f"{edge:>{side}} {wall}", "dim"), (line, "green"))
        if self.x:
            end = f"{int(max(self.x)):,} steps"
            yield Text(" " * (side + 2) + "0" + end.rjust(columns - 1), style="dim")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """0 to 1, or more where values lie outside."""
    finite = [value for value in values if math.isfinite(value)]
    return min([0.0, *finite]), max([1.0, *finite])
