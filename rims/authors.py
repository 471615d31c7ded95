"""Weights of the authors' implementation, in and out.

Two forms exist: plain arrays under descriptive names (:func:`load_weights`), and the ``state_dict``
of the authors' ``BlocksCore`` (:func:`from_state_dict`, :func:`to_state_dict`), whose recurrent
weights are dense matrices with one block per mechanism on the diagonal, gates outermost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rims.base_layer import RIMLayer
from rims.parameters import Parameters
from rims.step import RIMCell

#: Entries of a BlocksCore that its forward never uses: gates and layer norms that are switched off.
DEAD = (
    "inp_att.gate_fc.weight",
    "inp_att.gate_fc.bias",
    "inp_att.ln.weight",
    "inp_att.ln.bias",
    "mha.ln.weight",
    "mha.ln.bias",
)

_RECURRENT = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def load_weights(module: RIMCell | RIMLayer, arrays: Mapping[str, Any]) -> None:
    """Copy plain arrays into a cell or layer.

    Names are ``input_attention.{query,key,value}.weight``, ``cell.{weight,bias}_{ih,hh}`` (shaped
    [mechanism, gate, unit, ...]), ``communication.{query,key,value}.weight`` and
    ``communication.{output,gate}.{weight,bias}``, preceded by ``layer0.``, ``layer1.``, ... where
    the module has several layers.

    Args:
        module: what to fill.
        arrays: name to numpy array or tensor; exactly the names above.

    Raises:
        ValueError: naming the first entry that is missing, unknown or of the wrong shape. Nothing
            was copied then.
    """
    wanted: dict[str, Tensor] = {}
    cells = _cells(module)
    for i, cell in enumerate(cells):
        _require_parameters("load_weights", cell)
        prefix = f"layer{i}." if len(cells) > 1 else ""
        wanted |= {prefix + name: parameter for name, parameter in _plain_names(cell).items()}
    given = {name: torch.as_tensor(array) for name, array in arrays.items()}
    _require_names("load_weights", set(wanted), set(given))
    for name, parameter in wanted.items():
        expected = _plain_shape(name, parameter, cells)
        if tuple(given[name].shape) != expected:
            raise ValueError(
                f"load_weights: {name} must have shape {expected}; got {tuple(given[name].shape)}."
            )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(given[name].reshape(parameter.shape))


def from_state_dict(module: RIMCell | RIMLayer, state_dict: Mapping[str, Any]) -> None:
    """Copy the ``state_dict`` of a ``BlocksCore`` into a cell, or a layer with one cell.

    Off-diagonal blocks are ignored: the authors' code zeroes them before every use. So are the
    null slot's key and value, which multiply zeros, and the entries of :data:`DEAD`.

    Args:
        module: what to fill; one layer, one direction, default sizes of the attentions.
        state_dict: tensors or arrays by the authors' names.

    Raises:
        ValueError: naming the first entry that is missing, unknown or of the wrong shape. Nothing
            was copied then.
    """
    cell = _single_cell("from_state_dict", module)
    _require_parameters("from_state_dict", cell)
    template = _to_state_dict(cell)
    given = {n: torch.as_tensor(v) for n, v in state_dict.items() if n not in DEAD}
    _require_names("from_state_dict", set(template) - set(DEAD), set(given))
    for name, value in given.items():
        if value.shape != template[name].shape:
            raise ValueError(
                f"from_state_dict: {name} must have shape {tuple(template[name].shape)}; "
                f"got {tuple(value.shape)}."
            )
    core = _core_name(cell)
    with torch.no_grad():
        for name, parameter in _same_shape_names(cell).items():
            parameter.copy_(given[name])
        cell.key_weight.copy_(given["inp_att.GLN_ks.w"][1])
        cell.value_weight.copy_(given["inp_att.GLN_vs.w"][1])
        for name in _RECURRENT:
            parameter = getattr(cell, name)
            parameter.copy_(_blocks(given[f"{core}.{name}"], cell).reshape(parameter.shape))


def to_state_dict(module: RIMCell | RIMLayer) -> dict[str, Tensor]:
    """The ``state_dict`` a ``BlocksCore`` with these weights has; it loads there strictly.

    Off-diagonal blocks and the null slot are zero; the entries of :data:`DEAD` are zeros, layer
    norm weights ones.

    Args:
        module: a cell, or a layer with one cell, with biases and the authors' options.

    Raises:
        ValueError: for a module the authors' code has no form for.
    """
    return _to_state_dict(_single_cell("to_state_dict", module))


def _plain_names(cell: RIMCell) -> dict[str, Tensor]:
    names = {
        "input_attention.query.weight": cell.query_weight,
        "input_attention.key.weight": cell.key_weight,
        "input_attention.value.weight": cell.value_weight,
        "communication.query.weight": cell.comm_query_weight,
        "communication.key.weight": cell.comm_key_weight,
        "communication.value.weight": cell.comm_value_weight,
        "communication.output.weight": cell.comm_output_weight,
        "communication.output.bias": cell.comm_output_bias,
        "communication.gate.weight": cell.comm_gate_weight,
        "communication.gate.bias": cell.comm_gate_bias,
    }
    names |= {f"cell.{name}": getattr(cell, name) for name in _RECURRENT}
    return {name: parameter for name, parameter in names.items() if parameter is not None}


def _plain_shape(name: str, parameter: Tensor, cells: list[RIMCell]) -> tuple[int, ...]:
    if ".cell." not in f".{name}":
        return tuple(parameter.shape)
    num_rims, rows, *rest = parameter.shape
    gates = cells[0].num_gates
    return (num_rims, gates, rows // gates, *rest)


def _same_shape_names(cell: RIMCell) -> dict[str, Tensor]:
    names = {
        "inp_att.GLN_qs.w": cell.query_weight,
        "mha.GLN_qs.w": cell.comm_query_weight,
        "mha.GLN_ks.w": cell.comm_key_weight,
        "mha.GLN_vs.w": cell.comm_value_weight,
        "mha.fc.weight": cell.comm_output_weight,
        "mha.fc.bias": cell.comm_output_bias,
        "mha.gate_fc.weight": cell.comm_gate_weight,
        "mha.gate_fc.bias": cell.comm_gate_bias,
    }
    return {name: parameter for name, parameter in names.items() if parameter is not None}


def _to_state_dict(cell: RIMCell) -> dict[str, Tensor]:
    state = {name: p.detach().clone() for name, p in _same_shape_names(cell).items()}
    for name, weight in (
        ("inp_att.GLN_ks.w", cell.key_weight.detach()),
        ("inp_att.GLN_vs.w", cell.value_weight.detach()),
    ):
        state[name] = torch.stack([torch.zeros_like(weight), weight])
    for name in _RECURRENT:
        state[f"{_core_name(cell)}.{name}"] = _dense(getattr(cell, name).detach(), cell)
    read_size = cell.weight_ih.shape[-1]
    unit_size = cell.hidden_size // cell.num_rims
    like = cell.weight_ih.detach()
    state |= {
        "inp_att.gate_fc.weight": like.new_zeros(read_size, read_size),
        "inp_att.gate_fc.bias": like.new_zeros(read_size),
        "inp_att.ln.weight": like.new_ones(read_size),
        "inp_att.ln.bias": like.new_zeros(read_size),
        "mha.ln.weight": like.new_ones(unit_size),
        "mha.ln.bias": like.new_zeros(unit_size),
    }
    return state


def _dense(blocks: Tensor, cell: RIMCell) -> Tensor:
    """(N, G d, in) -> (G N d, N in), or (N, G d) -> (G N d): gates outermost, zeros elsewhere."""
    num_rims, rows = blocks.shape[:2]
    by_gate = blocks.reshape(num_rims, cell.num_gates, rows // cell.num_gates, -1).transpose(0, 1)
    if blocks.dim() == 2:
        return by_gate.reshape(-1)
    return torch.cat([torch.block_diag(*gate) for gate in by_gate])  # type: ignore[no-untyped-call]


def _blocks(dense: Tensor, cell: RIMCell) -> Tensor:
    """The inverse of :func:`_dense`, as (N, G, d, in) or (N, G, d)."""
    num_rims = cell.num_rims
    by_gate = dense.reshape(cell.num_gates, num_rims, -1, *dense.shape[1:])  # (G, N, d, N in)
    if dense.dim() == 1:
        return by_gate.transpose(0, 1)
    split = by_gate.reshape(*by_gate.shape[:3], num_rims, -1)  # (G, N, d, N, in)
    return split.diagonal(dim1=1, dim2=3).permute(3, 0, 1, 2)  # (G, d, in, N) -> (N, G, d, in)


def _core_name(cell: RIMCell) -> str:
    return "block_lstm.lstm" if cell.num_gates == 4 else "block_lstm.gru"


def _cells(module: RIMCell | RIMLayer) -> list[RIMCell]:
    return [module] if isinstance(module, RIMCell) else module.rim_cells


def _single_cell(where: str, module: RIMCell | RIMLayer) -> RIMCell:
    cells = _cells(module)
    if len(cells) != 1:
        raise ValueError(
            f"{where}: a BlocksCore is one layer in one direction; got {len(cells)} cells. "
            "Convert module.cells[i] one by one."
        )
    cell = cells[0]
    unit_size = cell.hidden_size // cell.num_rims
    published = (
        cell.bias
        and not (cell.proj_size or cell.input_slots or cell.initial)
        and cell.comm_reads == "candidate"
        and (cell.num_input_heads, cell.num_comm_heads) == (1, 4)
        and (cell.input_key_size, cell.comm_key_size, cell.comm_value_size) == (64, 16, 16)
        and cell.input_value_size == 4 * unit_size
        and (cell.input_gate, cell.competition, cell.tie_margin) == ("null", "null", 0)
        and cell.comm_update == "additive"
    )
    if not published:
        raise ValueError(
            f"{where}: a BlocksCore has the default sizes and heads of both attentions, biases, no "
            f"projection, no input slots, no learned initial state, comm_reads='candidate', and "
            f"reads, competes and communicates by default; got {cell}."
        )
    return cell


def _require_parameters(where: str, cell: RIMCell) -> None:
    for name, value in Parameters.of(cell)._asdict().items():
        if value is not None and not isinstance(value, nn.Parameter):
            raise ValueError(
                f"{where}: {name} is no parameter but computed from others, as pruning and "
                "weight_norm do. Load weights before that."
            )


def _require_names(where: str, wanted: set[str], given: set[str]) -> None:
    for name in sorted(wanted - given):
        raise ValueError(f"{where}: {name} is missing.")
    for name in sorted(given - wanted):
        raise ValueError(f"{where}: unknown entry {name}.")
