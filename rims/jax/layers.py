"""RIM_LSTM and RIM_GRU for JAX: layers and directions by the contract of the torch layers."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, ClassVar, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from rims.checks import CellOptions, check_count, check_flag, check_probability, per_layer
from rims.jax.cells import RIMCellBase, RIMGRUCell, RIMLSTMCell
from rims.jax.functional import dropout, stop_gradient_where
from rims.jax.sequence import ScanOutput, scan, scan_reversed
from rims.jax.step import State, initial_state

#: One array (layers * directions, B, D), or one per layer (directions, B, D_l) where sizes differ.
Stacked = Array | tuple[Array, ...]

#: One number for all layers, or one per layer.
PerLayer = int | list[int] | tuple[int, ...]


class _Flags(NamedTuple):
    reset: Array | None  # (T, B) bool
    mask: Array | None


class RIMLayer(nnx.Module):
    """Base class of RIM_LSTM and RIM_GRU; options are documented there."""

    cell_type: ClassVar[type[RIMCellBase]]

    def __init__(
        self,
        input_size: int,
        hidden_size: PerLayer,
        num_rims: PerLayer,
        k: PerLayer,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        *,
        rngs: nnx.Rngs,
        input_slots: bool = False,
        use_inactive: bool = True,
        blocked_grad: bool = False,
        fast: bool | None = None,
        **options: Unpack[CellOptions],
    ) -> None:
        where = type(self).__name__
        self.num_layers = check_count(where, "num_layers", num_layers)
        flags = {"batch_first": batch_first, "bidirectional": bidirectional}
        flags |= {"use_inactive": use_inactive, "blocked_grad": blocked_grad}
        for name, flag in flags.items():
            check_flag(where, name, flag)
        self.dropout = check_probability(where, "dropout", dropout)
        if self.dropout and num_layers == 1:
            text = f"{where}: dropout={dropout} acts between layers and there is only one layer."
            warnings.warn(text, stacklevel=2)
        self.batch_first, self.bidirectional = batch_first, bidirectional
        self.use_inactive, self.blocked_grad = use_inactive, blocked_grad
        self.input_slots, self.fast, self.dtype = input_slots, fast, dtype
        self.deterministic = False
        self.rngs = rngs.dropout.fork() if self.dropout else nnx.data(None)
        make = partial(self.cell_type, bias=bias, proj_size=proj_size, dtype=dtype, **options)
        cells: list[RIMCellBase] = []
        width = input_size
        for layer, sizes in enumerate(
            zip(
                per_layer(where, "hidden_size", hidden_size, num_layers),
                per_layer(where, "num_rims", num_rims, num_layers),
                per_layer(where, "k", k, num_layers),
                strict=True,
            )
        ):
            slots = input_slots and layer == 0
            for _ in range(self.num_directions):
                cell = make(width, *sizes, input_slots=slots, param_dtype=param_dtype, rngs=rngs)
                cells.append(cell)
            width = cells[-1].spec.output_size * self.num_directions
        self.cells = nnx.List(cells)

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def _run(
        self, input: Array, hx: tuple[Stacked, ...] | None, reset: Array | None, mask: Array | None
    ) -> tuple[Array, tuple[Stacked, ...]]:
        """Everything but the form of hx, which LSTM and GRU have differently."""
        where = type(self).__name__
        rank = 3 if self.input_slots else 2
        if input.ndim not in (rank, rank + 1):
            raise ValueError(
                f"{where}: input must have {rank} or {rank + 1} axes; got {input.ndim}."
            )
        unbatched = input.ndim == rank
        sequence = self._time_major(input, unbatched)
        if self.dtype is not None:
            sequence = sequence.astype(self.dtype)
        flags = self._flags(where, reset, mask, sequence, unbatched)
        if flags.mask is not None:
            # What is computed from padding is thrown away, but its gradient would not be: zero
            # times NaN is NaN.
            valid = flags.mask.reshape(*flags.mask.shape, *(1,) * (sequence.ndim - 2))
            sequence = jnp.where(valid, sequence, 0)
        states = self._split(where, hx, sequence.shape[1], unbatched)
        finals: list[State] = []
        for layer in range(self.num_layers):
            first = layer * self.num_directions
            did = [
                self._run_cell(first + direction, bool(direction), sequence, states, flags)
                for direction in range(self.num_directions)
            ]
            finals += [one.state for one in did]
            last = layer == self.num_layers - 1
            parts = [one.output if last else self._pass_on(one) for one in did]
            sequence = jnp.concatenate(parts, axis=-1)
            if not last and self.rngs is not None and not self.deterministic:
                sequence = dropout(sequence, self.dropout, self.rngs())
        output = sequence[:, 0] if unbatched else sequence
        if self.batch_first and not unbatched:
            output = jnp.swapaxes(output, 0, 1)
        return output, self._join(finals, unbatched)

    def _run_cell(
        self, index: int, backwards: bool, sequence: Array, states: list[State], flags: _Flags
    ) -> ScanOutput:
        cell = self.cells[index]
        run = scan_reversed if backwards else scan
        key = cell.dropout_key()
        return run(
            cell.computed(), sequence, states[index], **flags._asdict(), key=key, fast=self.fast
        )

    def _pass_on(self, did: ScanOutput) -> Array:
        """Input of the next layer, by ``use_inactive`` and ``blocked_grad``."""
        unit_size = did.output.shape[-1] // did.active.shape[-1]
        active = jnp.repeat(did.active, unit_size, axis=-1)  # (T, B, N) -> (T, B, D)
        output = did.output
        if self.blocked_grad:
            output = stop_gradient_where(output, ~active)
        return output if self.use_inactive else jnp.where(active, output, 0)

    def _time_major(self, array: Array, unbatched: bool) -> Array:
        """(T, ...), (T, B, ...) or (B, T, ...) as (T, B, ...)."""
        if unbatched:
            return array[:, None]
        return jnp.swapaxes(array, 0, 1) if self.batch_first else array

    def _flags(
        self, where: str, reset: Array | None, mask: Array | None, sequence: Array, unbatched: bool
    ) -> _Flags:
        if reset is not None and mask is not None:
            raise ValueError(f"{where}: reset and mask cannot be combined.")
        if mask is not None and self.bidirectional:
            _require_ends_only(where, mask, self.batch_first and not unbatched)
        found: list[Any] = []
        for name, flag in (("reset", reset), ("mask", mask)):
            if flag is not None:
                flag = self._time_major(jnp.asarray(flag), unbatched)
                if flag.shape != sequence.shape[:2] or flag.dtype != bool:
                    raise ValueError(
                        f"{where}: {name} must be bool in the layout of the input without features."
                    )
            found.append(flag)
        return _Flags(*found)

    def _split(
        self, where: str, hx: tuple[Stacked, ...] | None, batch: int, unbatched: bool
    ) -> list[State]:
        """The initial state of every cell."""
        if hx is None:
            return [initial_state(cell.computed(), (batch,)) for cell in self.cells]
        columns = []
        for name, part, sizes in zip(("h_0", "c_0"), hx, self._widths(), strict=False):
            whole: Any = [part] if len(set(sizes)) == 1 else part
            lead = () if unbatched else (batch,)
            per = len(sizes) if len(set(sizes)) == 1 else self.num_directions
            expected = [(per, *lead, size) for size in sizes[::per]]
            got = [p.shape for p in whole] if isinstance(whole, list | tuple) else None
            if got != expected:
                raise ValueError(f"{where}: {name} must have shape {expected}; got {got}.")
            rows = [row for p in whole for row in p]
            columns.append([row[None] if unbatched else row for row in rows])
        return list(zip(*columns, strict=True))

    def _widths(self) -> list[list[int]]:
        """Per array of the state the sizes it has in every cell."""
        sizes = [cell.spec.state_sizes for cell in self.cells]
        return [list(column) for column in zip(*sizes, strict=True)]

    def _join(self, finals: list[State], unbatched: bool) -> tuple[Stacked, ...]:
        joined: list[Stacked] = []
        for sizes, rows in zip(self._widths(), zip(*finals, strict=True), strict=True):
            parts = [row[0] if unbatched else row for row in rows]
            if len(set(sizes)) == 1:
                joined.append(jnp.stack(parts))
            else:
                step = self.num_directions
                starts = range(0, len(parts), step)
                joined.append(tuple(jnp.stack(parts[i : i + step]) for i in starts))
        return tuple(joined)


def _require_ends_only(where: str, mask: Array, batch_first: bool) -> None:
    """Raise ValueError if a mask skips more than ends; the values of a traced one are not known."""
    if isinstance(mask, jax.core.Tracer):
        return
    valid = np.asarray(mask)  # jax.numpy would trace it inside jit
    valid = valid.T if batch_first else valid
    if (valid[1:] & ~valid[:-1]).any():
        raise ValueError(
            f"{where}: mask of a bidirectional layer must be true up to a sequence's end and false "
            "after it; it is false before a step where it is true."
        )


class RIM_LSTM(RIMLayer):
    r"""Recurrent Independent Mechanisms with LSTM dynamics over a sequence, a layer for Flax NNX.

    The JAX side of :class:`rims.RIM_LSTM`, with its arguments and its numbers (arXiv:1909.10893):
    at every step the k mechanisms with the largest
    :math:`l_m = (h_m W^q_m) \cdot (x W^k) / \sqrt{d_k}` are updated. :func:`rims.jax.from_torch`
    and :func:`rims.jax.to_torch` take weights over.

    Args:
        input_size: I, features of the input.
        hidden_size: D, features of the output, over all mechanisms. A sequence: per layer.
        num_rims: N, number of mechanisms; divides ``hidden_size``. A sequence: per layer.
        k: mechanisms active per step. A sequence: per layer.
        num_layers: stacked layers. Default 1.
        bias: whether there are biases. Default true.
        batch_first: input, output, ``reset`` and ``mask`` are ``(B, T, ...)``. Default false.
        dropout: probability of zeroing an entry between layers. Default 0.
        bidirectional: also run backwards in time and join the outputs. Default false.
        proj_size: P, project every h to this total size. Default 0, no projection.
        dtype: what is computed in. Default: what input, state and parameters have in common.
        param_dtype: of the parameters. Default float32.
        rngs: streams ``params``, and ``dropout`` where something is dropped; ``train()`` and
            ``eval()`` switch that on and off.
        input_slots: each step is S elements ``(T, B, S, I)``. Default false.
        use_inactive: the next layer also reads inactive mechanisms; false: zeros. Default true.
        blocked_grad: no gradient from the next layer into inactive mechanisms. Default false.
        fast: as in :func:`rims.jax.scan`; False allows forward-mode derivatives. Default None.
        options: the other keyword-only options of :class:`rims.RIM_LSTMCell`.

    Shape:
        - input ``(T, B, I)``, ``(B, T, I)`` if ``batch_first``, or ``(T, I)``
        - ``h_0``, ``c_0`` (layers * directions, B, D); where layers differ in size, a tuple of one
          array (directions, B, D_l) per layer
        - output ``(T, B, directions * D)`` in the form of the input

    Returns:
        ``output, (h_n, c_n)``.

    Raises:
        ValueError, TypeError: for sizes, options and shapes that do not fit each other.

    Example:
        >>> layer = RIM_LSTM(600, 300, 6, 4, rngs=nnx.Rngs(0))
        >>> output, (h_n, c_n) = layer(jnp.ones((5, 3, 600)))
        >>> output.shape, h_n.shape, c_n.shape
        ((5, 3, 300), (1, 3, 300), (1, 3, 300))
    """

    cell_type = RIMLSTMCell

    def __call__(
        self,
        input: Array,
        hx: tuple[Stacked, Stacked] | None = None,
        *,
        reset: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, tuple[Stacked, Stacked]]:
        """Run the sequence; ``hx`` defaults to zeros, or to what is learned.

        ``reset`` is bool, one flag per step and sequence; where true the state starts anew before
        that step. ``mask`` likewise; where false the step is padding and the state stays. A
        bidirectional layer can skip only the ends of sequences.
        """
        if hx is not None and (not isinstance(hx, tuple) or len(hx) != 2):
            raise ValueError("RIM_LSTM: hx must be a pair (h_0, c_0).")
        output, (h_n, c_n) = self._run(input, hx, reset, mask)
        return output, (h_n, c_n)


class RIM_GRU(RIMLayer):
    r"""Recurrent Independent Mechanisms with GRU dynamics over a sequence, a layer for Flax NNX.

    The JAX side of :class:`rims.RIM_GRU` (arXiv:1909.10893); as :class:`RIM_LSTM`, each mechanism
    updated as :math:`\tilde h_m = (1 - z)\, n + z\, h_m`. No ``proj_size``.

    Args:
        input_size: I, features of the input.
        hidden_size: D, features of the output, over all mechanisms. A sequence: per layer.
        num_rims: N, number of mechanisms; divides ``hidden_size``. A sequence: per layer.
        k: mechanisms active per step. A sequence: per layer.
        num_layers: stacked layers. Default 1.
        bias: whether there are biases. Default true.
        batch_first: input, output, ``reset`` and ``mask`` are ``(B, T, ...)``. Default false.
        dropout: probability of zeroing an entry between layers. Default 0.
        bidirectional: also run backwards in time and join the outputs. Default false.
        rngs: see :class:`RIM_LSTM`, as for all other options.

    Shape:
        input and output as :class:`RIM_LSTM`; ``h_0`` (layers * directions, B, D).

    Returns:
        ``output, h_n``.

    Raises:
        ValueError, TypeError: for sizes, options and shapes that do not fit each other.

    Example:
        >>> layer = RIM_GRU(10, 24, 6, 4, batch_first=True, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((3, 5, 10)))
        >>> output.shape, h_n.shape
        ((3, 5, 24), (1, 3, 24))
    """

    cell_type = RIMGRUCell

    def __call__(
        self,
        input: Array,
        hx: Stacked | None = None,
        *,
        reset: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, Stacked]:
        """Run the sequence; arguments as :meth:`RIM_LSTM.__call__`, ``hx`` being ``h_0`` alone."""
        output, (h_n,) = self._run(input, None if hx is None else (hx,), reset, mask)
        return output, h_n
