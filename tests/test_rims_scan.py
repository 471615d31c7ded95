"""Every way to compute a sequence gives the numbers of the readable loop, gradients included."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import rims
from fixtures import Arrays, assert_gradients, files, read, tensor, weights
from layer_cases import both
from oracles import rim_step
from rims.scan import scan_path
from rims.scan.paths import Path
from scan_cases import (
    Case,
    LayerKind,
    all_paths,
    assert_near,
    both_cells,
    cases,
    chunks_of,
    double,
    fast_paths,
    layer_results,
    leaf,
    make_case,
    results,
    threads,
)
from selection import short

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)

# --- cells


@settings(PROPERTY, max_examples=25)
@given(case=cases())
def test_reference_is_the_equations(case: Case) -> None:
    state, outputs, active = case.state, [], []
    for t, input in enumerate(case.input):
        if case.reset is not None:
            fresh = case.cell.initial_state(input)
            flag = case.reset[t, :, None]
            state = tuple(torch.where(flag, f, s) for f, s in zip(fresh, state, strict=True))
        step = rim_step(case.cell, input, state)
        keep = torch.ones(len(input), 1) > 0 if case.valid is None else case.valid[t, :, None]
        state = tuple(torch.where(keep, n, o) for n, o in zip(step.state, state, strict=True))
        outputs.append(state[0])
        active.append([a if kept else [] for a, kept in zip(step.active, keep[:, 0], strict=True)])
    got = case.run("reference")
    torch.testing.assert_close(got.output, torch.stack(outputs), rtol=1e-9, atol=1e-9)
    for part, expected in zip(got.state, state, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-9)
    assert [[row.nonzero()[:, 0].tolist() for row in rows] for rows in got.active] == active


@fast_paths
@PROPERTY
@given(case=cases(), rows=st.sampled_from([1, 7, 2048]), count=st.sampled_from([1, 1, 2, 3]))
def test_every_path_equals_the_reference(path: Path, case: Case, rows: int, count: int) -> None:
    expected = results("reference", case)
    with chunks_of(rows), threads(count):
        assert_near(results(path, case), expected)


@PROPERTY
@given(case=cases(kernels=False), rows=st.sampled_from([1, 7, 2048]))
def test_torch_equals_the_reference_in_options_that_kernels_lack(case: Case, rows: int) -> None:
    expected = results("reference", case)
    with chunks_of(rows):
        assert_near(results("torch", case), expected)


@fast_paths
@both_cells
@pytest.mark.parametrize("unit", [1, 3, 7, 8, 15, 16, 17, 33, 50])
def test_every_unit_size_around_vector_widths(path: Path, kind: Any, unit: int) -> None:
    torch.manual_seed(unit)
    case = make_case(kind, (5, unit, 3, 2), 3, 5, num_comm_heads=2, comm_key_size=unit)
    assert_near(results(path, case), results("reference", case))


@fast_paths
@both_cells
@pytest.mark.parametrize("batch", short([1, 2, 3, 4, 5, 31, 32, 33, 65], 0, 4, 7))
def test_every_batch_around_block_sizes(path: Path, kind: Any, batch: int) -> None:
    torch.manual_seed(batch)
    case = make_case(kind, (3, 5, 4, 2), 3, batch, resets=True, learned_initial_state=True)
    expected = results("reference", case)
    for count in (1, 2, 3):
        with threads(count):
            assert_near(results(path, case), expected)


@fast_paths
@both_cells
def test_ranges_of_any_length_add_up(path: Path, kind: Any) -> None:
    torch.manual_seed(0)
    case = make_case(kind, (3, 5, 4, 2), 11, 3, resets=True, padding=True, bias=False)
    expected = results("reference", case)
    for rows in (1, 6, 10, 33, 34):  # ranges of 1, 2, 3 and 11 steps
        with chunks_of(rows):
            assert_near(results(path, case), expected)


# --- layers


@st.composite
def layer_options(draw: st.DrawFn) -> dict[str, Any]:
    flags = ["bias", "batch_first", "bidirectional", "use_inactive", "blocked_grad"]
    options: dict[str, Any] = {name: draw(st.booleans()) for name in flags}
    options["learned_initial_state"] = draw(st.booleans())
    options["comm_reads"] = draw(st.sampled_from(["candidate", "state"]))
    return options | {"num_layers": draw(st.integers(1, 3)), "seed": draw(st.integers(0, 999))}


def layer_of(kind: LayerKind, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    layer = kind(5, 12, 4, 2, dtype=torch.float64, input_key_size=3, comm_key_size=5, **options)
    for cell in layer.rim_cells:
        for start in cell.initial:
            torch.nn.init.normal_(start)
    return layer


def state_of(layer: Any, batch: int) -> Any:
    shape = (layer.num_layers * layer.num_directions, batch, 12)
    return (double(*shape), double(*shape)) if layer.cell_type.num_states == 2 else double(*shape)


@fast_paths
@both
@settings(PROPERTY, max_examples=12)
@given(options=layer_options(), flags=st.sampled_from(["", "reset", "mask"]), starts=st.booleans())
def test_layers_equal_the_reference(
    path: Path, kind: LayerKind, options: dict[str, Any], flags: str, starts: bool
) -> None:
    layer = layer_of(kind, **options)
    steps, batch = 5, 3
    given: dict[str, Tensor] = {}
    if flags == "reset":
        given["reset"] = torch.rand(steps, batch) < 0.3
    if flags == "mask":  # ends only, as a bidirectional layer wants it
        given["mask"] = torch.arange(steps)[:, None] < torch.tensor([5, 0, 3])
    if layer.batch_first:
        given = {name: flag.T for name, flag in given.items()}
    input = double(*((batch, steps) if layer.batch_first else (steps, batch)), 5)
    hx = state_of(layer, batch) if starts else None
    expected = layer_results("reference", layer, input, hx, **given)
    assert_near(layer_results(path, layer, input, hx, **given), expected)


@fast_paths
@both
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences_equal_the_reference(
    path: Path, kind: LayerKind, enforce_sorted: bool
) -> None:
    layer = layer_of(kind, 0, num_layers=2, bidirectional=True)
    lengths = (5, 3, 1) if enforce_sorted else (1, 5, 3)
    packed = pack_sequence([double(n, 5) for n in lengths], enforce_sorted=enforce_sorted)
    hx = state_of(layer, 3)
    expected = layer_results("reference", layer, packed, hx)
    assert_near(layer_results(path, layer, packed, hx), expected)


@fast_paths
@both
def test_layers_of_different_sizes_and_one_sequence_alone(path: Path, kind: LayerKind) -> None:
    torch.manual_seed(0)
    layer: Any = kind(5, [12, 9], [4, 3], [2, 3], num_layers=2, dtype=torch.float64)
    input = double(6, 5)
    expected = layer_results("reference", layer, input)
    assert_near(layer_results(path, layer, input), expected)


# --- published arrays


def published_layer(arrays: Arrays) -> Any:
    kind: Any = {"lstm": rims.RIM_LSTM, "gru": rims.RIM_GRU}[str(arrays["meta.cell"])]
    names = ("hidden_size", "num_mechanisms", "num_active")
    sizes = [np.atleast_1d(arrays[f"meta.{name}"]).tolist() for name in names]
    flags = [name for name in ("use_inactive", "blocked_grad") if f"meta.{name}" in arrays]
    options: dict[str, Any] = {name: bool(arrays[f"meta.{name}"]) for name in flags}
    input_size, layers = int(arrays["meta.input_size"]), len(sizes[0])
    layer = kind(input_size, *sizes, layers, dtype=torch.float64, **options)
    rims.authors.load_weights(layer, weights(arrays))
    return layer


@all_paths
@pytest.mark.parametrize("file", files("rims_*.npz") + files("rims2_*.npz"))
def test_published_arrays_on_every_path(path: Path, file: File) -> None:
    arrays = read(file)
    layer = published_layer(arrays)
    stacked, count = file.stem.startswith("rims2_"), layer.num_layers
    marks = [f".layer{i}" for i in range(count)] if stacked else [""]
    letters = "hc"[: layer.cell_type.num_states]
    leaves = {n + m: leaf(tensor(arrays[f"{n}0{m}"])[None]) for n in letters for m in marks}
    hx = [tuple(leaves[n + m] for m in marks) if stacked else leaves[n] for n in letters]
    inputs = leaf(tensor(arrays["inputs"]))
    with scan_path(path):
        output, last = layer(inputs, tuple(hx) if letters == "hc" else hx[0])
    loss = (output * tensor(arrays["cotangent"])).sum()
    torch.autograd.backward(loss, inputs=[inputs, *leaves.values(), *layer.parameters()])

    # layers of different sizes have a tuple of states, others a tensor to index
    ends = [part[i] for part in (last if letters == "hc" else (last,)) for i in range(count)]
    compared = [(output, "outputs"), (inputs.grad, "grad.inputs"), (loss, "loss")]
    for (name, start), end in zip(leaves.items(), ends, strict=True):
        letter, mark = name[0], name[1:]
        compared += [(end.reshape(start.shape[1:]), f"{letter}_T{mark}")]
        compared += [(start.grad, f"grad.{letter}0{mark}")]
    for got, name in compared:
        assert got is not None
        expected = tensor(arrays[name])
        torch.testing.assert_close(got.reshape(expected.shape), expected, rtol=1e-9, atol=1e-9)
    for i, cell in enumerate(layer.rim_cells):
        assert assert_gradients(cell, arrays, f"layer{i}." if stacked else "") == 14
