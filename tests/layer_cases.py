"""The small layers that tests of RIM_LSTM and RIM_GRU share, beside torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rims
from rims.step import RIMCell

LAYERS = [rims.RIM_LSTM, rims.RIM_GRU]
both = pytest.mark.parametrize("kind", LAYERS)
Kind = type[rims.RIM_LSTM] | type[rims.RIM_GRU]

#: Steps, batch, features.
T, B, I = 7, 3, 11  # noqa: E741
#: hidden_size, num_rims, k.
D, N, K = 10, 5, 2

#: A GRU has no projection.
with_projection = pytest.mark.parametrize(
    ("kind", "proj_size"), [(rims.RIM_LSTM, 0), (rims.RIM_LSTM, 5), (rims.RIM_GRU, 0)]
)
#: torch remarks once per process that its projection is slow on a CPU.
torch_may_remark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


def make(kind: Kind, **options: Any) -> Any:
    return kind(I, D, N, K, **options)


def pair(kind: Kind, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Torch's layer and ours."""
    theirs: Any = nn.LSTM if kind is rims.RIM_LSTM else nn.GRU
    return theirs(I, D, **options), make(kind, **options)


def shapes(result: Any) -> Any:
    if isinstance(result, Tensor):
        return tuple(result.shape)
    return [shapes(part) for part in result]


def states(kind: Kind, *shape: int, dtype: torch.dtype | None = None) -> Any:
    h = torch.randn(*shape, dtype=dtype)
    return (h, torch.randn(*shape, dtype=dtype)) if kind is rims.RIM_LSTM else h


def cells_of(layer: nn.Module) -> list[RIMCell]:
    return [module for module in layer.modules() if isinstance(module, RIMCell)]


#: Names inside a cell when its attentions were modules, and now.
THEN = {
    "input_attention.query_weight": "query_weight",
    "input_attention.key_weight": "key_weight",
    "input_attention.value_weight": "value_weight",
    "communication.query_weight": "comm_query_weight",
    "communication.key_weight": "comm_key_weight",
    "communication.value_weight": "comm_value_weight",
    "communication.output_weight": "comm_output_weight",
    "communication.gate_weight": "comm_gate_weight",
    "communication.output_bias": "comm_output_bias",
    "communication.gate_bias": "comm_gate_bias",
}


def former(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it was saved then."""
    names = {now: then for then, now in THEN.items()}
    saved = {}
    for name, value in state.items():
        prefix, _, own = name.rpartition(".")
        saved[f"{prefix}.{names.get(own, own)}" if prefix else names.get(own, own)] = value
    assert saved.keys() != state.keys()
    return saved
