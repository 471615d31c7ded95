"""Time RIM layers against nn.LSTM and nn.GRU of the same sizes, in one run.

    python benchmarks/cells.py --out benchmarks/results

Each pair is timed alternately, round after round, so that a machine that slows down slows both;
the figure is the median of the ratios of single rounds.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import nn

import rims


class Size(NamedTuple):
    """Layer sizes and the batch they are timed on."""

    input_size: int
    hidden_size: int
    num_rims: int
    k: int
    batch: int
    steps: int

    def __str__(self) -> str:
        layer = f"({self.input_size}, {self.hidden_size}, {self.num_rims}, {self.k})"
        return f"{layer} B={self.batch} T={self.steps}"


SIZES = (
    Size(600, 300, 6, 4, batch=16, steps=50),
    Size(600, 300, 6, 4, batch=64, steps=100),
    Size(128, 128, 4, 3, batch=16, steps=32),
    Size(128, 128, 4, 3, batch=64, steps=1),
)


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--rounds", default=11, show_default=True, type=click.IntRange(3), help="Per pair.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
def main(out: Path, rounds: int, threads: int) -> None:
    """Write cells.json and cells.md into OUT."""
    torch.set_num_threads(threads)
    rows = []
    for size in SIZES:
        for ours, theirs in ((rims.RIM_LSTM, nn.LSTM), (rims.RIM_GRU, nn.GRU)):
            rims_layer = ours(size.input_size, size.hidden_size, size.num_rims, size.k)
            baseline = theirs(size.input_size, size.hidden_size)
            for training in (False, True):
                rows.append(_compare(size, rims_layer, baseline, training, rounds))
                click.echo(_row(rows[-1]))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "rounds": rounds,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "cells.json").write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")
    head = ", ".join(f"{name} {value}" for name, value in machine.items())
    table = [
        "# RIM layers against nn.LSTM and nn.GRU",
        "",
        f"`make bench`; {head}. Median milliseconds and median of the ratios of single rounds.",
        "",
        "| layer, batch, steps | pass | ours | ms | baseline | ms | ratio |",
        "|---|---|---|---|---|---|---|",
        *map(_row, rows),
    ]
    (out / "cells.md").write_text("\n".join(table) + "\n")


def _compare(
    size: Size, layer: nn.Module, baseline: nn.Module, training: bool, rounds: int
) -> dict[str, Any]:
    input = torch.randn(size.steps, size.batch, size.input_size)
    run = _train if training else _infer
    pairs = []
    for round in range(rounds + 1):
        pair = (_time(lambda: run(layer, input)), _time(lambda: run(baseline, input)))
        if round:  # the first round warms up
            pairs.append(pair)
    return {
        "size": str(size),
        "pass": "forward + backward" if training else "inference",
        "ours": type(layer).__name__,
        "ours_ms": 1e3 * statistics.median(ours for ours, _ in pairs),
        "baseline": f"nn.{type(baseline).__name__}",
        "baseline_ms": 1e3 * statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ours / theirs for ours, theirs in pairs),
    }


def _train(layer: nn.Module, input: torch.Tensor) -> None:
    layer.zero_grad()
    layer(input)[0].sum().backward()


@torch.no_grad()
def _infer(layer: nn.Module, input: torch.Tensor) -> None:
    layer(input)


def _time(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _row(row: dict[str, Any]) -> str:
    return (
        f"| {row['size']} | {row['pass']} | {row['ours']} | {row['ours_ms']:.2f} "
        f"| {row['baseline']} | {row['baseline_ms']:.2f} | {row['ratio']:.1f} |"
    )


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
