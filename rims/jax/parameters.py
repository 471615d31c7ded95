"""Sizes and options of a RIM cell, and its parameters as a pytree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from rims.checks import (
    CommReads,
    CommUpdate,
    Competition,
    InputGate,
    check_cell_options,
    check_mechanisms,
)

#: Options that only the torch layers compute, and their defaults.
_TORCH_ONLY = {
    "input_gate": "null",
    "competition": "null",
    "comm_update": "additive",
    "tie_margin": 0.0,
}

#: Which recurrence a mechanism has.
Kind = Literal["lstm", "gru"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellSpec:
    """Sizes and options of a cell: everything about it that is not an array. Hashable.

    Args:
        kind: ``"lstm"`` or ``"gru"``.
        input_size: I, features of the input.
        hidden_size: D, features of the whole state, over all mechanisms.
        num_rims: N, number of mechanisms; divides ``hidden_size``.
        k: mechanisms active per step, ``1 <= k <= num_rims``.
        bias: whether gates and communication have biases.
        proj_size: P, total size of a projected output (LSTM only); 0 projects nothing.
        input_slots: the input of a step is S elements ``(..., S, I)``.
        num_input_heads: heads of the input attention.
        input_key_size: features of a query or key of the input attention, per head.
        input_value_size: A, features a mechanism reads; None: ``4 d``.
        num_comm_heads: M, heads of the communication.
        comm_key_size: features of a query or key of the communication, per head.
        comm_value_size: features of a value of the communication, per head.
        input_dropout: dropout on what a mechanism reads, where a key is given.
        comm_dropout: dropout on the communication output before its tanh, where a key is given.
        comm_reads: what is read of an inactive mechanism, ``"candidate"`` or ``"state"``.
        comm_gate_bias: initial value added to the bias of the communication's gate.
        input_gate: the default alone, as ``competition``, ``comm_update`` and ``tie_margin``.
        learned_initial_state: the state at the start and after resets is a parameter.
        init_from_unit_size: gate weights are drawn by d instead of D.

    Raises:
        ValueError, TypeError: as :class:`rims.RIM_LSTMCell` for the same mistake.

    Example:
        >>> CellSpec(kind="lstm", input_size=10, hidden_size=24, num_rims=6, k=4).unit_size
        4
    """

    kind: Kind
    input_size: int
    hidden_size: int
    num_rims: int
    k: int
    bias: bool = True
    proj_size: int = 0
    input_slots: bool = False
    num_input_heads: int = 1
    input_key_size: int = 64
    input_value_size: int | None = None
    num_comm_heads: int = 4
    comm_key_size: int = 16
    comm_value_size: int = 16
    input_dropout: float = 0.0
    comm_dropout: float = 0.0
    comm_reads: CommReads = "candidate"
    comm_gate_bias: float = 0.0
    input_gate: InputGate = "null"
    competition: Competition = "null"
    comm_update: CommUpdate = "additive"
    tie_margin: float = 0.0
    learned_initial_state: bool = False
    init_from_unit_size: bool = False

    def __post_init__(self) -> None:
        where = f"RIM{self.kind.upper()}Cell"
        if self.kind not in ("lstm", "gru"):
            raise ValueError(f"CellSpec: kind must be 'lstm' or 'gru'; got {self.kind!r}.")
        check_mechanisms(where, self.hidden_size, self.num_rims, self.k, self.proj_size)
        if self.kind == "gru" and self.proj_size:
            raise ValueError(f"{where}: proj_size is for LSTM mechanisms only.")
        names = [field.name for field in dataclasses.fields(self)]
        given = {name: getattr(self, name) for name in names}
        check_cell_options(where, given | {"input_value_size": self.read_size})
        for name, default in _TORCH_ONLY.items():
            if given[name] != default:
                raise ValueError(
                    f"{where}: rims.jax does not compute {name}={given[name]!r}; use the torch "
                    f"layers, or {name}={default!r}."
                )
        if not self.num_comm_heads:
            raise ValueError(
                f"{where}: rims.jax does not compute num_comm_heads=0; use the torch layers."
            )

    @property
    def unit_size(self) -> int:
        """d, features of one mechanism's state."""
        return self.hidden_size // self.num_rims

    @property
    def output_size(self) -> int:
        """Features of h over all mechanisms: P if projected, else D."""
        return self.proj_size or self.hidden_size

    @property
    def read_size(self) -> int:
        """A, features a mechanism reads."""
        return 4 * self.unit_size if self.input_value_size is None else self.input_value_size

    @property
    def num_gates(self) -> int:
        """G: 4 for an LSTM, 3 for a GRU."""
        return 4 if self.kind == "lstm" else 3

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Width of every array of the state, h first."""
        return (self.output_size, self.hidden_size)[: self.num_gates - 2]

    @property
    def has_dropout(self) -> bool:
        """Whether a step can use random numbers."""
        return self.input_dropout > 0 or self.comm_dropout > 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of a cell: a pytree whose leaves are arrays, absent ones None.

    Names and shapes are those of the torch cell. Gradients, optimizers and ``jax.tree.map`` work on
    it as on any pytree; ``spec`` is static.

    Example:
        >>> spec = CellSpec(kind="gru", input_size=5, hidden_size=12, num_rims=4, k=2)
        >>> init(jax.random.key(0), spec).weight_hh.shape
        (4, 9, 3)
    """

    query_weight: Array  # (N, d, M dk); d is P / N where projected, here and below
    key_weight: Array  # (I, M dk)
    value_weight: Array  # (I, A)
    weight_ih: Array  # (N, G d, A)
    weight_hh: Array  # (N, G d, d)
    comm_query_weight: Array  # (N, d, M dc)
    comm_key_weight: Array  # (N, d, M dc)
    comm_value_weight: Array  # (N, d, M dv)
    comm_output_weight: Array  # (d, M dv)
    comm_gate_weight: Array  # (d, M dv)
    bias_ih: Array | None = None  # (N, G d)
    bias_hh: Array | None = None  # (N, G d)
    comm_output_bias: Array | None = None  # (d,)
    comm_gate_bias: Array | None = None  # (d,)
    weight_hr: Array | None = None  # (N, P / N, d)
    initial_h: Array | None = None  # (D,) or (P,)
    initial_c: Array | None = None  # (D,)
    spec: CellSpec = dataclasses.field(metadata={"static": True})

    def arrays(self) -> dict[str, Array]:
        """The parameters that exist, by name."""
        found = {name: getattr(self, name) for name in NAMES}
        return {name: array for name, array in found.items() if array is not None}

    def astype(self, dtype: Any) -> Parameters:
        """The parameters in another type."""
        changed: dict[str, Any] = {n: a.astype(dtype) for n, a in self.arrays().items()}
        return dataclasses.replace(self, **changed)

    @property
    def initial(self) -> tuple[Array, ...]:
        """The learned initial state, h first; empty if none is learned."""
        return tuple(s for s in (self.initial_h, self.initial_c) if s is not None)


#: The names of all arrays a cell can have.
NAMES = tuple(f.name for f in dataclasses.fields(Parameters) if f.name != "spec")


def shapes(spec: CellSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter that a cell of ``spec`` has."""
    n, d, unit = spec.num_rims, spec.output_size // spec.num_rims, spec.unit_size
    keys = spec.num_input_heads * spec.input_key_size
    comm_keys = spec.num_comm_heads * spec.comm_key_size
    comm_values = spec.num_comm_heads * spec.comm_value_size
    gates = spec.num_gates * unit
    found: dict[str, tuple[int, ...]] = {
        "query_weight": (n, d, keys),
        "key_weight": (spec.input_size, keys),
        "value_weight": (spec.input_size, spec.read_size),
        "weight_ih": (n, gates, spec.read_size),
        "weight_hh": (n, gates, d),
        "comm_query_weight": (n, d, comm_keys),
        "comm_key_weight": (n, d, comm_keys),
        "comm_value_weight": (n, d, comm_values),
        "comm_output_weight": (d, comm_values),
        "comm_gate_weight": (d, comm_values),
    }
    if spec.bias:
        found |= {"bias_ih": (n, gates), "bias_hh": (n, gates)}
        found |= {"comm_output_bias": (d,), "comm_gate_bias": (d,)}
    if spec.proj_size:
        found["weight_hr"] = (n, d, unit)
    if spec.learned_initial_state:
        starts = zip(("initial_h", "initial_c"), spec.state_sizes, strict=False)
        found |= {name: (size,) for name, size in starts}
    return found


def init(key: Array, spec: CellSpec, dtype: Any = jnp.float32) -> Parameters:
    r"""Draw the parameters of a cell, by the laws of the torch cell.

    Gates come from :math:`U(-1/\sqrt{D}, 1/\sqrt{D})`, with ``init_from_unit_size`` d for D;
    attentions from :math:`U(-1/\sqrt{fan}, 1/\sqrt{fan})` with their own fan-in; learned initial
    states are zeros (arXiv:1909.10893 as its authors implement it; ``docs/notation.md``).

    Args:
        key: of :mod:`jax.random`.
        spec: sizes and options.
        dtype: of all parameters. Default float32.

    Returns:
        :class:`Parameters`.

    Example:
        >>> spec = CellSpec(kind="lstm", input_size=5, hidden_size=12, num_rims=4, k=2)
        >>> init(jax.random.key(0), spec).key_weight.shape
        (5, 64)
    """
    drawn: Parameters = _draw(key, spec, jnp.dtype(dtype))
    return drawn


@partial(jax.jit, static_argnums=(1, 2))
def _draw(key: Array, spec: CellSpec, dtype: Any) -> Parameters:
    """All at once: to compile a draw for every shape takes seconds."""
    wanted = shapes(spec)
    sizes = {name: math.prod(shape) for name, shape in wanted.items()}
    numbers = jax.random.uniform(key, (sum(sizes.values()),), dtype, -1, 1)
    found, start = {}, 0
    for name, shape in wanted.items():
        part = numbers[start : start + sizes[name]].reshape(shape)
        start += sizes[name]
        if name.startswith("initial_"):
            found[name] = jnp.zeros_like(part)
        else:
            found[name] = part / math.sqrt(_fan_in(name, shape, spec))
        if name == "comm_gate_bias" and spec.comm_gate_bias:
            found[name] += spec.comm_gate_bias
    return Parameters(spec=spec, **found)


def of_arrays(where: str, spec: CellSpec, arrays: Mapping[str, Array]) -> Parameters:
    """Parameters from arrays by name.

    Raises:
        ValueError: naming the first entry that is missing, unknown or of the wrong shape.
    """
    wanted = shapes(spec)
    for name in sorted(wanted.keys() - arrays.keys()):
        raise ValueError(f"{where}: {name} is missing.")
    for name in sorted(arrays.keys() - wanted.keys()):
        raise ValueError(f"{where}: unknown entry {name}.")
    for name, shape in wanted.items():
        if tuple(arrays[name].shape) != shape:
            got = tuple(arrays[name].shape)
            raise ValueError(f"{where}: {name} must have shape {shape}; got {got}.")
    return Parameters(spec=spec, **arrays)


def _fan_in(name: str, shape: tuple[int, ...], spec: CellSpec) -> int:
    if name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"):
        return spec.unit_size if spec.init_from_unit_size else spec.hidden_size
    if name.startswith(("comm_output_", "comm_gate_")):
        return spec.num_comm_heads * spec.comm_value_size
    return shape[-2]
