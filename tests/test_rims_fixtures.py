"""The published arrays of RIM layers, values and gradients, to 1e-9 in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rims
from fixtures import Arrays, assert_gradients, files, read, tensor, weights
from rims.attention import communicate, read_input
from rims.parameters import Parameters
from rims.step import RIMCell
from tolerances import assert_near as assert_close


def _layer(arrays: Arrays, **options: Any) -> rims.RIM_LSTM | rims.RIM_GRU:
    kind = {"lstm": rims.RIM_LSTM, "gru": rims.RIM_GRU}[str(arrays["meta.cell"])]
    names = ("hidden_size", "num_mechanisms", "num_active")
    hidden, num_rims, k = (np.atleast_1d(arrays[f"meta.{n}"]).tolist() for n in names)
    layer: rims.RIM_LSTM | rims.RIM_GRU = kind(
        int(arrays["meta.input_size"]),
        hidden,
        num_rims,
        k,
        num_layers=len(hidden),
        dtype=torch.float64,
        **options,
    )
    return layer


def _states(arrays: Arrays, layers: list[str], names: str) -> list[list[Tensor]]:
    """Initial states as leaves: per tensor of the state, per layer, (1, B, D)."""
    return [
        [tensor(arrays[f"{name}0{layer}"])[None].requires_grad_() for layer in layers]
        for name in names
    ]


@pytest.mark.parametrize("path", files("rims_*.npz") + files("rims2_*.npz"))
def test_layer_reproduces_published_arrays(path: Path) -> None:
    arrays = read(path)
    stacked = path.stem.startswith("rims2_")
    options = (
        {
            "use_inactive": bool(arrays["meta.use_inactive"]),
            "blocked_grad": bool(arrays["meta.blocked_grad"]),
        }
        if stacked
        else {}
    )
    layer = _layer(arrays, **options)
    cells = [c for c in layer.cells if isinstance(c, RIMCell)]
    suffixes = [f".layer{i}" for i in range(len(cells))] if stacked else [""]
    prefixes = [f"layer{i}." for i in range(len(cells))] if stacked else [""]
    rims.authors.load_weights(layer, weights(arrays))

    names = "hc" if isinstance(layer, rims.RIM_LSTM) else "h"
    states = _states(arrays, suffixes, names)
    given = [tuple(parts) if stacked else parts[0] for parts in states]
    inputs = tensor(arrays["inputs"]).requires_grad_()
    with rims.trace(layer) as trace:
        output, final = layer(inputs, tuple(given) if names == "hc" else given[0])
    loss = (output * tensor(arrays["cotangent"])).sum()
    loss.backward()

    assert_close(output, tensor(arrays["outputs"]))
    assert_close(loss, tensor(arrays["loss"]))
    assert_close(inputs.grad, tensor(arrays["grad.inputs"]))
    finals = final if names == "hc" else (final,)
    for name, parts, ends in zip(names, states, finals, strict=True):
        for i, (suffix, start) in enumerate(zip(suffixes, parts, strict=True)):
            assert_close(ends[i].reshape(start.shape[1:]), tensor(arrays[f"{name}_T{suffix}"]))
            assert_close(start.grad, tensor(arrays[f"grad.{name}0{suffix}"])[None])
    for i, (cell, prefix, suffix) in enumerate(zip(cells, prefixes, suffixes, strict=True)):
        assert assert_gradients(cell, arrays, prefix) == 14
        expected = torch.from_numpy(arrays[f"active_mask{suffix}"]).bool()
        assert torch.equal(trace.active[f"cells.{i}"], expected)
        probs = tensor(arrays[f"input_attention_probs{suffix}"])
        assert_close(trace.input_attention[f"cells.{i}"], probs)


@pytest.mark.parametrize("path", files("rims_*.npz"))
def test_first_step_reproduces_published_intermediates(path: Path) -> None:
    arrays = read(path)
    layer = _layer(arrays)
    (cell,) = layer.cells
    assert isinstance(cell, RIMCell)
    rims.authors.load_weights(cell, weights(arrays))
    if "step0.mechanism_input" not in arrays:
        pytest.skip("the file holds no intermediates")
    num_rims, size = cell.num_rims, cell.hidden_size // cell.num_rims
    prev = tuple(
        tensor(arrays[f"{n}0"]).reshape(-1, num_rims, size) for n in "hc"[: cell.num_states]
    )
    p = Parameters.of(cell)
    read_in = read_input(p, tensor(arrays["inputs"])[0].unsqueeze(1), prev[0])
    candidate = cell.candidate(p, read_in.read, prev)
    update, attention = communicate(p, candidate[0])
    for name, got in [
        ("mechanism_input", read_in.read),
        *zip(("h_candidate", "c_candidate"), candidate, strict=False),
        ("communication_probs", attention),
        ("communication_update", update),
    ]:
        assert_close(got, tensor(arrays[f"step0.{name}"]))


@pytest.mark.parametrize("path", files("rimcomp_*.npz"))
def test_competition_of_mechanisms_reproduces_published_arrays(path: Path) -> None:
    arrays = read(path)
    layer = _layer(arrays, competition="mechanisms", comm_key_size=32, comm_value_size=32)
    (cell,) = layer.rim_cells
    rims.authors.load_weights(layer, weights(arrays))

    names = "hc"[: cell.num_states]
    states = [tensor(arrays[f"{name}0"])[None].requires_grad_() for name in names]
    inputs = tensor(arrays["inputs"]).requires_grad_()
    with rims.trace(layer) as trace:
        output, final = layer(inputs, tuple(states) if len(states) > 1 else states[0])
    loss = (output * tensor(arrays["cotangent"])).sum()
    loss.backward()

    assert_close(output, tensor(arrays["outputs"]))
    assert_close(loss, tensor(arrays["loss"]))
    assert_close(inputs.grad, tensor(arrays["grad.inputs"]))
    for name, start, end in zip(names, states, final if names == "hc" else (final,), strict=True):
        assert_close(end[0], tensor(arrays[f"{name}_T"]))
        assert_close(start.grad, tensor(arrays[f"grad.{name}0"])[None])
    assert assert_gradients(cell, arrays, "") == 14
    assert torch.equal(trace.active["cells.0"], torch.from_numpy(arrays["active_mask"]).bool())
    null, input_weights = trace.input_attention["cells.0"].unbind(-1)
    assert not null.any()
    assert_close(input_weights, tensor(arrays["input_weights"]))

    # w of all steps, and what the first one computes on its way
    before = torch.cat([states[0], output[:-1]]).detach()
    before = before.reshape(*before.shape[:2], cell.num_rims, -1)  # (T, B, N, d)
    p = Parameters.of(cell)
    did = [
        read_input(p, x[:, None], h, competition="mechanisms", k=cell.k)
        for x, h in zip(inputs, before, strict=True)
    ]
    scores = torch.stack([step.score for step in did])
    assert_close(scores.softmax(-1), tensor(arrays["competition_probs"]))
    prev = tuple(state.reshape(state.shape[1], cell.num_rims, -1) for state in states)
    candidate = cell.candidate(p, did[0].read, prev)
    update, attention = communicate(p, candidate[0])
    for name, got in [
        ("mechanism_input", did[0].read),
        ("communication_probs", attention),
        ("communication_update", update),
    ]:
        assert_close(got, tensor(arrays[f"step0.{name}"]))
