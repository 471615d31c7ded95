"""What the tests of :mod:`rims.scan` share: the paths, random cells, and everything they compute.

The path ``"reference"`` is what the others are compared with: a loop over :meth:`RIMCell.step`,
which has tests of its own against the equations (``tests/oracles.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import rims
from rims.scan import ScanOutput, hoisted, scan, scan_path
from rims.scan.input_side import Apart, InputSide, Joined
from rims.scan.paths import Path
from rims.step import RIMCell, State

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
FAST = [pytest.param("torch"), pytest.param("native", marks=needs_numba)]
fast_paths = pytest.mark.parametrize("path", FAST)
all_paths = pytest.mark.parametrize("path", ["reference", *FAST])

both_sides = pytest.mark.parametrize("side", [Apart, Joined])

CELLS = [rims.RIM_LSTMCell, rims.RIM_GRUCell]
both_cells = pytest.mark.parametrize("kind", CELLS)
CellKind = type[rims.RIM_LSTMCell] | type[rims.RIM_GRUCell]
LayerKind = type[rims.RIM_LSTM] | type[rims.RIM_GRU]

Results = dict[str, Tensor]


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Case(NamedTuple):
    """A cell, a sequence, and what interrupts it."""

    cell: RIMCell
    input: Tensor  # (T, B, I)
    state: State
    reset: Tensor | None = None
    valid: Tensor | None = None

    def run(self, path: Path) -> ScanOutput:
        with scan_path(path):
            return scan(self.cell, self.input, self.state, reset=self.reset, valid=self.valid)


def make_case(
    kind: Any,
    sizes: tuple[int, int, int, int],
    steps: int,
    batch: int,
    *,
    resets: bool = False,
    padding: bool = False,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Case:
    """A case drawn from torch's generator; ``sizes`` are I, d, N, k."""
    input_size, unit, num_rims, k = sizes
    cell: RIMCell = kind(input_size, num_rims * unit, num_rims, k, dtype=dtype, **options)
    for start in cell.initial:
        torch.nn.init.normal_(start)
    return Case(
        cell,
        torch.randn(steps, batch, input_size, dtype=dtype),
        tuple(torch.randn(batch, size, dtype=dtype) for size in cell.state_sizes),
        torch.rand(steps, batch) < 0.3 if resets else None,
        torch.rand(steps, batch) < 0.7 if padding else None,
    )


#: d around the widths of vectors, which hold 2 to 16 numbers.
UNITS = [1, 2, 3, 7, 8, 15, 16, 17, 33]


@st.composite
def cases(draw: st.DrawFn, *, kernels: bool = True) -> Case:
    """A random case with every option the fast paths take, or those that kernels do not have."""

    def size(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    torch.manual_seed(size(0, 10**6))
    num_rims = size(1, 6)
    made = make_case(
        draw(st.sampled_from(CELLS)),
        (size(1, 9), draw(st.sampled_from(UNITS)), num_rims, size(1, num_rims)),
        size(1, 6),
        size(1, 9),
        resets=draw(st.booleans()),
        padding=draw(st.booleans()),
        bias=draw(st.booleans()),
        input_key_size=size(1, 9),
        input_value_size=size(1, 17),
        input_gate=draw(st.sampled_from(["null", "null", "none", "straight_through"])),
        competition="null" if kernels else draw(st.sampled_from(["null", "mechanisms"])),
        num_comm_heads=size(0, 6),
        comm_key_size=size(1, 9),
        comm_value_size=size(1, 9),
        comm_reads=draw(st.sampled_from(["candidate", "state"])),
        learned_initial_state=draw(st.booleans()),
    )
    # a state of zeros ties all mechanisms
    scale = draw(st.sampled_from([0.0, 1.0, 1.0]))
    return made._replace(state=tuple(part * scale for part in made.state))


def cotangents(parts: Sequence[Tensor]) -> list[Tensor]:
    """The same random numbers for every path."""
    source = torch.Generator().manual_seed(23)
    return [
        torch.randn(part.shape, generator=source, dtype=torch.float64).to(part.dtype)
        for part in parts
    ]


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def results(path: Path, case: Case, weight: Tensor | None = None) -> Results:
    """What the sequence becomes, and the gradients of everything, by name.

    ``weight`` is multiplied with the random gradients of the outputs.
    """
    case = case._replace(input=leaf(case.input), state=tuple(leaf(part) for part in case.state))
    did = case.run(path)
    ends = [did.output, *did.state]
    grads = [g if weight is None else g * weight for g in cotangents(ends)]
    wanted = {"input": case.input} | {f"state {i}": part for i, part in enumerate(case.state)}
    wanted |= dict(case.cell.named_parameters())
    found = torch.autograd.grad(
        ends, list(wanted.values()), grads, allow_unused=True, materialize_grads=True
    )
    values = {"output": did.output, "active": did.active}
    values |= {f"last {i}": part for i, part in enumerate(did.state)}
    gradients = {f"gradient of {n}": g for n, g in zip(wanted, found, strict=True)}
    return {name: part.detach() for name, part in (values | gradients).items()}


def layer_results(path: Path | None, layer: Any, input: Any, hx: Any = None, **flags: Any) -> Any:
    """As :func:`results`, for a layer; ``input`` may be packed."""
    packed = None if isinstance(input, Tensor) else input
    data = leaf(input if packed is None else packed.data)
    given = data if packed is None else packed._replace(data=data)
    state = [leaf(part) for part in flat(hx)]
    if hx is not None:
        hx = tuple(state) if len(state) > 1 else state[0]
    with scan_path(path):
        output, last = layer(given, hx, **flags)
    ends = [output if packed is None else output.data, *flat(last)]
    wanted = {"input": data} | {f"state {i}": part for i, part in enumerate(state)}
    wanted |= dict(layer.named_parameters())
    found = torch.autograd.grad(
        ends, list(wanted.values()), cotangents(ends), allow_unused=True, materialize_grads=True
    )
    values = {f"result {i}": end.detach() for i, end in enumerate(ends)}
    return values | {f"gradient of {n}": g for n, g in zip(wanted, found, strict=True)}


def flat(hx: Any) -> list[Tensor]:
    if hx is None:
        return []
    return [hx] if isinstance(hx, Tensor) else [t for part in hx for t in flat(part)]


def assert_near(got: Results, expected: Results, tolerance: float = 1e-9) -> None:
    """Every entry; 1e-9 is double precision over a few steps and sums of some hundred terms."""
    assert got.keys() == expected.keys()
    for name, value in got.items():
        torch.testing.assert_close(
            value,
            expected[name],
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=partial("{}: {}".format, name),
        )


def assert_equal(got: Results, expected: Results) -> None:
    """Every entry, every bit."""
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert torch.equal(value, expected[name]), name


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def input_side(side: type[InputSide]) -> Iterator[None]:
    """Sequences read their input this way, whatever their sizes."""
    with patch.object(hoisted, "choose", lambda *sizes: side):
        yield


@contextmanager
def chunks_of(rows: int) -> Iterator[None]:
    """Sequences are computed in ranges of about ``rows`` rows (steps times batch)."""
    with patch.object(hoisted, "chunk_rows", lambda w: rows):
        yield
