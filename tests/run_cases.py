"""Run folders made by hand, for tests of what reads them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from agents.config import PPOConfig
from lab.disk.folder import CONFIG_NAME, PROGRESS_NAME

ENV = "MiniGrid-Empty-5x5-v0"
ROWS = 5


def columns(rows: int = ROWS, success: Sequence[float] | None = None) -> dict[str, list[float]]:
    """A progress table: 100 steps and 2 seconds per update."""
    nan = float("nan")
    rates = list(success) if success is not None else [nan, *(0.2 * i for i in range(1, rows))]
    return {
        "update": [i + 1.0 for i in range(rows)],
        "env_steps": [100.0 * (i + 1) for i in range(rows)],
        "seconds": [2.0 * (i + 1) for i in range(rows)],
        "env_steps_per_second": [50.0] * rows,
        "success_rate": rates,
        "episode_return_mean": [0.9 * rate for rate in rates],
        "entropy": [1.5] * rows,
    }


def make_run(
    folder: Path,
    table: Mapping[str, Sequence[float]] | None = None,
    **settings: object,
) -> Path:
    """A run folder; of 500 steps, which is what :func:`columns` has, unless told otherwise."""
    folder.mkdir(parents=True)
    config = PPOConfig(**{"env": ENV, "total_steps": 500, **settings})  # type: ignore[arg-type]
    (folder / CONFIG_NAME).write_text(config.to_toml(), encoding="utf-8")
    table = columns() if table is None else table
    with (folder / PROGRESS_NAME).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if table:
            writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return folder
