"""Reading the published arrays, and putting their weights into our modules."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rims.step import RIMCell

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "fixtures"

Arrays = dict[str, np.ndarray]


def files(pattern: str) -> list[object]:
    """One pytest parameter per file, or a single skipped one that says what is missing."""
    paths = sorted(FOLDER.glob(pattern))
    if paths:
        return [pytest.param(p, id=p.stem) for p in paths]
    reason = f"published arrays {pattern} not found in {FOLDER}"
    return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]


def read(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


def weights(arrays: Arrays) -> Arrays:
    """The weights of a file by their plain names."""
    return {n.removeprefix("param."): a for n, a in arrays.items() if n.startswith("param.")}


def cell_parameters(cell: RIMCell) -> dict[str, tuple[Tensor, bool]]:
    """Published name -> our parameter, and whether theirs is [mechanism, gate, unit, ...]."""
    named = {
        "input_attention.query.weight": cell.query_weight,
        "input_attention.key.weight": cell.key_weight,
        "input_attention.value.weight": cell.value_weight,
        "cell.weight_ih": cell.weight_ih,
        "cell.weight_hh": cell.weight_hh,
        "cell.bias_ih": cell.bias_ih,
        "cell.bias_hh": cell.bias_hh,
        "communication.query.weight": cell.comm_query_weight,
        "communication.key.weight": cell.comm_key_weight,
        "communication.value.weight": cell.comm_value_weight,
        "communication.output.weight": cell.comm_output_weight,
        "communication.output.bias": cell.comm_output_bias,
        "communication.gate.weight": cell.comm_gate_weight,
        "communication.gate.bias": cell.comm_gate_bias,
    }
    return {name: (p, name.startswith("cell.")) for name, p in named.items() if p is not None}


def assert_gradients(cell: RIMCell, arrays: Arrays, prefix: str) -> int:
    """Compare every weight gradient; return how many were compared."""
    compared = 0
    for name, (parameter, gated) in cell_parameters(cell).items():
        full, strided = (
            arrays.get(f"grad.{prefix}{name}"),
            arrays.get(f"grad_stride4.{prefix}{name}"),
        )
        expected = full if full is not None else strided
        assert expected is not None, f"no gradient of {name} in the file"
        assert parameter.grad is not None, name
        got = parameter.grad
        if gated:
            n, rows = got.shape[:2]
            got = got.reshape(n, cell.num_gates, rows // cell.num_gates, *got.shape[2:])
        if full is None:
            got = got[..., ::4]
        # Gradients of the two large files are stored in float32.
        rtol, atol = (1e-6, 1e-7) if expected.dtype == np.float32 else (1e-9, 1e-9)
        torch.testing.assert_close(
            got, tensor(expected), rtol=rtol, atol=atol, msg=partial("{}: {}".format, name)
        )
        compared += 1
    return compared
