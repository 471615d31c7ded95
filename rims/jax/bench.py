"""Speed of the JAX layers beside Flax's and beside the torch layers: ``rims bench jax``."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from rims.bench import machine
from rims.bench.cases import Case, Device
from rims.bench.cases import Settings as Grid
from rims.bench.report import plural, short
from rims.bench.results import replace_text
from rims.bench.timing import Contender, Pair, alternate, summarise
from rims.jax import native
from rims.jax.layers import RIM_GRU, RIM_LSTM
from rims.jax.weights import to_torch
from rims.layers import RIM_GRU as TorchGRU
from rims.layers import RIM_LSTM as TorchLSTM

JSON_NAME, MARKDOWN_NAME = "jax.json", "jax.md"

#: By kind: ours, Flax's cell, ours in torch.
_KINDS: dict[str, tuple[Any, Any, Any]] = {
    "lstm": (RIM_LSTM, nnx.OptimizedLSTMCell, TorchLSTM),
    "gru": (RIM_GRU, nnx.GRUCell, TorchGRU),
}

Say = Callable[[str], None]


class Contest(NamedTuple):
    """One comparison; ``input_too`` where the input's gradient is computed as well."""

    case: Case
    input_too: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the contenders, the baseline first."""
        ours, cell, _ = _KINDS[self.case.kind]
        jax_layer = f"rims.jax {ours.__name__}"
        torch_layer = f"rims {ours.__name__}, torch"
        return f"flax {cell.__name__}", jax_layer, f"{jax_layer}, without Numba", torch_layer

    @property
    def title(self) -> str:
        """The computation that is timed, in words."""
        size = ", ".join(map(str, self.case.size))
        too = ", gradient of the input too" if self.input_too else ""
        return f"({size}), B={self.case.batch}, T={self.case.steps}, {self.case.work}{too}"


@dataclass(frozen=True)
class Row:
    """Measurements of one contest."""

    contest: Contest
    rounds: Sequence[tuple[float, ...]]  # milliseconds, one per contender

    def figures(self) -> list[tuple[str, float, float, float, float]]:
        """Per contender its name, milliseconds, and the ratio to the first with its quartiles."""
        found = []
        for place, name in enumerate(self.contest.names):
            summary = summarise([Pair(times[place], times[0]) for times in self.rounds])
            found.append((name, summary.ours_ms, *summary[2:]))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the figures, and the rounds they come from."""
        names = ("name", "ms", "ratio", "ratio_low", "ratio_high")
        return {
            **self.contest.case.to_dict(),
            "gradient_of_input": self.contest.input_too,
            "contenders": [dict(zip(names, figures, strict=True)) for figures in self.figures()],
            "rounds_ms": [list(times) for times in self.rounds],
        }


def best_device() -> Device:
    """A GPU if both torch and JAX find one."""
    return "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"


def contests(grid: Grid) -> list[Contest]:
    """Every case, training with and without the input's gradient."""
    choices = ((False, True) if case.work == "training" else (False,) for case in grid.cases())
    return [
        Contest(case, input_too)
        for case, both in zip(grid.cases(), choices, strict=True)
        for input_too in both
    ]


def contenders(contest: Contest, device: Device) -> list[Contender]:
    """The contenders ``names``: all but the last jitted, all but the first of the same weights."""
    case = contest.case
    layer, cell, torch_layer = _KINDS[case.kind]
    rows = np.random.default_rng(0).standard_normal(
        (case.steps, case.batch, case.size.input_size), np.float32
    )
    sizes = case.size.input_size, case.size.hidden_size
    flax_rnn = nnx.RNN(cell(*sizes, rngs=nnx.Rngs(0)), time_major=True)
    # Given, so that no random stream is touched inside jit, which Flax refuses.
    start = flax_rnn.cell.initialize_carry((case.batch, case.size.input_size), nnx.Rngs(0))
    ours = layer(*case.size, rngs=nnx.Rngs(0))
    theirs = torch_layer(*case.size)
    theirs.load_state_dict(to_torch(ours))
    return [
        _of_jax(flax_rnn, partial(_scanned, start), jnp.asarray(rows), contest),
        _of_jax(ours, lambda rnn, x: rnn(x)[0], jnp.asarray(rows), contest),
        _of_jax(ours, _without_numba, jnp.asarray(rows), contest),
        _of_torch(theirs.to(device), torch.from_numpy(rows).to(device), contest),
    ]


def _without_numba(rnn: Any, input: jax.Array) -> Any:
    with native.left_out():
        return rnn(input)[0]


def _scanned(start: Any, rnn: nnx.RNN, input: jax.Array) -> Any:
    return rnn(input, initial_carry=start)


def _of_jax(
    module: nnx.Module, run: Callable[[Any, Any], Any], input: jax.Array, contest: Contest
) -> Contender:
    parts: Any = nnx.split(module, nnx.Param, ...)
    graph, weights, rest = parts

    def output_of(weights: Any, input: jax.Array) -> jax.Array:
        output: jax.Array = run(nnx.merge(graph, weights, rest), input)
        return output

    def loss(weights: Any, input: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = output_of(weights, input)
        return output.sum(), output

    wanted = (0, 1) if contest.input_too else (0,)
    passed: Any = output_of
    if contest.case.work == "training":
        passed = jax.value_and_grad(loss, argnums=wanted, has_aux=True)
    compiled = jax.jit(passed)

    def work() -> Any:
        done = compiled(weights, input)
        jax.block_until_ready(done)  # type: ignore[no-untyped-call]
        return done[0][1] if contest.case.work == "training" else done

    return Contender(work, lambda: None)


def _of_torch(layer: torch.nn.Module, input: torch.Tensor, contest: Contest) -> Contender:
    def work() -> torch.Tensor:
        given = input.detach().requires_grad_(contest.input_too)
        if contest.case.work == "inference":
            with torch.no_grad():
                output: torch.Tensor = layer(given)[0]
        else:
            output = layer(given)[0]
            output.sum().backward()  # type: ignore[no-untyped-call]
        if output.is_cuda:
            torch.cuda.synchronize()
        return output

    return Contender(work, layer.zero_grad)


def bench_jax(grid: Grid, folder: Path, command: str, *, say: Say) -> str:
    """Measure every contest and write ``jax.json`` and ``jax.md`` after each.

    Args:
        grid: what to measure.
        folder: an existing folder for the two files.
        command: what was typed, for the report.
        say: takes a line about progress.

    Returns:
        The report as Markdown.

    Raises:
        FloatingPointError: if an output is not finite; then its time means nothing.
        ValueError: if JAX has no device of the kind asked for.
    """
    torch.set_num_threads(grid.threads)
    about = machine.describe(grid.device, grid.threads, command)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    about |= versions
    rows: list[Row] = []
    report = ""
    with jax.default_device(_device(grid.device)):
        for contest in contests(grid):
            rows.append(_measure(contest, grid))
            report = to_markdown(about, rows)
            plain = {"machine": about, "rows": [row.to_dict() for row in rows]}
            replace_text(folder / JSON_NAME, json.dumps(plain, indent=1) + "\n")
            replace_text(folder / MARKDOWN_NAME, report)
            parts = (
                f"{name} {short(ms)} ms ({short(r)})" for name, ms, r, *_ in rows[-1].figures()
            )
            say(f"{contest.title}: {'; '.join(parts)}")
    return report


def _device(device: Device) -> jax.Device:
    kind = "gpu" if device == "cuda" else "cpu"
    try:
        return jax.devices(kind)[0]
    except RuntimeError:
        raise ValueError(f"device {device!r}: JAX finds no {kind.upper()}.") from None


def _measure(contest: Contest, grid: Grid) -> Row:
    entrants = contenders(contest, grid.device)
    for name, entrant in zip(contest.names, entrants, strict=True):
        output = entrant.work()
        finite = output.isfinite() if isinstance(output, torch.Tensor) else jnp.isfinite(output)
        if not finite.all():
            raise FloatingPointError(f"{name}: the result is not finite.")
    # By the wall clock on every device: each contender waits for its own result.
    return Row(contest, alternate(entrants, "cpu", grid.rounds, grid.seconds_per_case))


_TEXT = """\
# RIM layers in JAX, Flax's layers, and RIM layers in torch

    {command}

{processor}, {cores} cores, {threads} for torch, device {device}; {system}, jax {jax},
flax {flax}, torch {torch}, Python {python}; commit {commit}, {date}.

Flax's cells are scanned by `nnx.RNN`; what is of JAX is jitted, compiled before the first round,
and runs on as many threads as JAX takes. All contenders have the same input and sizes and run
alternately in one process; the RIM layers of both frameworks have the same weights. Without Numba
a RIM layer is computed by XLA alone, as on other devices than CPUs. Times are
medians of single calls in milliseconds; the ratio is to the first line, taken in every round: its
median and, in brackets, its quartiles. Training is forward and backward of the output's sum, with
gradients of the weights."""


def to_markdown(about: dict[str, Any], rows: Sequence[Row]) -> str:
    """The whole report."""
    parts = [_TEXT.format(**about | {"threads": plural(about["threads"], "thread")})]
    for row in rows:
        lines = [
            f"## {row.contest.title}: {len(row.rounds)} rounds",
            "",
            "| contender | ms | ratio |",
            "| --- | ---: | ---: |",
        ]
        for name, ms, ratio, low, high in row.figures():
            lines.append(f"| {name} | {short(ms)} | {short(ratio)} [{short(low)}, {short(high)}] |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
