"""RIM_LSTM and RIM_GRU: layers, directions, packing and hx, by the contract of nn.LSTM / nn.GRU."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rims.batching import (
    RepeatedInput,
    as_it_is,
    check_input,
    require_ends_only,
    side_by_side,
    time_major_flags,
    time_major_places,
    to_time_major,
    unrepeat,
)
from rims.cells import RIM_GRUCell, RIM_LSTMCell
from rims.checks import check_count, check_flag, check_probability, per_layer
from rims.functional import stop_gradient_where
from rims.hidden_state import Stacked, join_states, split_hx, to_autocast_dtype
from rims.scan import Over, ScanOutput, is_recomputing
from rims.step import CellOptions, RIMCell, State
from rims.symbolic import as_leaf

#: Takes the index of a cell, what it did, which steps count, and the caller's order of rows.
Recorder = Callable[[int, ScanOutput, Tensor | None, Tensor | None], None]

#: One number for all layers, or one per layer.
PerLayer = int | list[int] | tuple[int, ...]


class RIMLayer(nn.Module):
    """What RIM_LSTM and RIM_GRU share; see there."""

    cell_type: ClassVar[type[RIMCell]]

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_slots: bool = False,
        use_inactive: bool = True,
        blocked_grad: bool = False,
        **options: Unpack[CellOptions],
    ) -> None:
        super().__init__()
        where = type(self).__name__
        num_layers = check_count(where, "num_layers", num_layers)
        proj_size = check_count(where, "proj_size", proj_size, minimum=0)
        for name, flag in (
            ("bias", bias),
            ("batch_first", batch_first),
            ("bidirectional", bidirectional),
            ("input_slots", input_slots),
            ("use_inactive", use_inactive),
            ("blocked_grad", blocked_grad),
        ):
            check_flag(where, name, flag)
        dropout = check_probability(where, "dropout", dropout)
        if dropout and num_layers == 1:
            warnings.warn(
                f"{where}: dropout={dropout} acts between layers and there is only one layer.",
                stacklevel=2 if type(self).__init__ is RIMLayer.__init__ else 3,
            )
        sizes = per_layer(where, "hidden_size", hidden_size, num_layers)
        counts = per_layer(where, "num_rims", num_rims, num_layers)
        actives = per_layer(where, "k", k, num_layers)
        self.input_size = input_size
        self.hidden_size = sizes if isinstance(hidden_size, list | tuple) else sizes[0]
        self.num_rims = counts if isinstance(num_rims, list | tuple) else counts[0]
        self.k = actives if isinstance(k, list | tuple) else actives[0]
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.input_slots = input_slots
        self.use_inactive = use_inactive
        self.blocked_grad = blocked_grad
        self.recorders: list[Recorder] = []

        make: dict[str, Any] = dict(options, device=device, dtype=dtype)
        if issubclass(self.cell_type, RIM_LSTMCell):
            make["proj_size"] = proj_size
        cells: list[RIMCell] = []
        width = input_size
        for layer, sizes_of_layer in enumerate(zip(sizes, counts, actives, strict=True)):
            make["input_slots"] = input_slots and layer == 0
            for _ in range(self.num_directions):
                cells.append(self.cell_type(width, *sizes_of_layer, bias, **make))
            width = (proj_size or sizes_of_layer[0]) * self.num_directions
        self.cells = nn.ModuleList(cells)

    @property
    def rim_cells(self) -> list[RIMCell]:
        """The cells by their type: layer after layer, in each the directions."""
        return [cast(RIMCell, cell) for cell in self.cells]

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or pickle takes along: everything but who is recording this layer."""
        return self.__dict__ | {"recorders": []}

    def __getattr__(self, name: str) -> Any:
        """Say why there is no ``_all_weights``; everything else as nn.Module."""
        if name == "_all_weights":
            raise AttributeError(
                f"{type(self).__name__} has no _all_weights: its weights are not those of one "
                "LSTM or GRU. Use a backend that calls forward, in TorchRL recurrent_backend='pad'."
            )
        return super().__getattr__(name)

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of every cell, in the order nn.LSTM lists its layers and directions."""
        return [list(cell.parameters()) for cell in self.cells]

    def reset_parameters(self) -> None:
        """Draw every parameter anew; see :meth:`rims.cells.RIMCell.reset_parameters`."""
        for cell in self.rim_cells:
            cell.reset_parameters()

    def flatten_parameters(self) -> None:
        """Do nothing; nn.LSTM compacts its weights here for cuDNN, these need no compaction."""

    def extra_repr(self) -> str:
        """Sizes in constructor order, then what differs from the default; cells show the rest."""
        parts = [f"{self.input_size}, {self.hidden_size}, {self.num_rims}, {self.k}"]
        parts += [f"{n}={getattr(self, n)}" for n, d in _DEFAULTS.items() if getattr(self, n) != d]
        return ", ".join(parts)

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Stacked, ...] | None,
        reset: Tensor | None,
        mask: Tensor | None,
        repeated: RepeatedInput | None,
    ) -> tuple[Any, tuple[Stacked, ...]]:
        """Everything but the form of hx, which LSTM and GRU have differently."""
        where, unbatched_dim = type(self).__name__, 3 if self.input_slots else 2
        check_input(where, input, self.input_size, self.batch_first, unbatched_dim=unbatched_dim)
        cells = self.rim_cells
        batch = to_time_major(input, self.batch_first, unbatched_dim=unbatched_dim)
        if mask is not None:
            valid = time_major_flags(where, "mask", mask, batch)
            if self.bidirectional:
                require_ends_only(where, valid)
            # What a layer computes from padding is thrown away, but its gradient would not be:
            # zero times NaN is NaN.
            skipped = ~valid.reshape(valid.shape + (1,) * (batch.input.dim() - 2))
            batch = batch._replace(valid=valid, input=batch.input.masked_fill(skipped, 0.0))
        reset_steps = None if reset is None else time_major_flags(where, "reset", reset, batch)
        states = split_hx(where, cells, hx, batch, self.num_directions)
        # A packed nn.LSTM finds another type out later than the others, as another class.
        late = isinstance(input, PackedSequence) and self.cell_type.num_states == 2
        wrong_type = RuntimeError if late else ValueError
        record = bool(self.recorders) and not is_recomputing()
        repeated = time_major_places(repeated, batch)
        sent = None if repeated is None else as_it_is(batch.input)
        over = Over(where, wrong_type, reset_steps, batch.valid, repeated, sent, record=record)

        sequence = batch.input
        finals: list[State] = []
        for layer in range(self.num_layers):
            scans = []
            for direction in range(self.num_directions):
                index = layer * self.num_directions + direction
                # Called, not asked for its weights: tools act on what is called.
                result: ScanOutput = cells[index](
                    sequence,
                    states[index],
                    over=over._replace(backwards=True) if direction else over,
                )
                for recorder in self.recorders if record else ():
                    recorder(index, result, batch.valid, batch.order_back)
                scans.append(result)
                finals.append(result.state)
            over = over._replace(repeated=None)
            if layer < self.num_layers - 1:
                sequence = torch.cat([self._pass_on(s) for s in scans], dim=-1)
                sequence = F.dropout(sequence, self.dropout, self.training)
            else:
                sequence = side_by_side([s.output for s in scans])
        return batch.restore(sequence), join_states(cells, finals, batch, self.num_directions)

    def _pass_on(self, scanned: ScanOutput) -> Tensor:
        """What the next layer reads of this one: ``use_inactive`` and ``blocked_grad``."""
        output = scanned.output
        if self.use_inactive and not self.blocked_grad:
            return output
        unit_size = output.shape[-1] // scanned.active.shape[-1]
        active = scanned.active.repeat_interleave(unit_size, dim=-1)  # (T, B, N) -> (T, B, D)
        if self.blocked_grad:
            output = stop_gradient_where(output, ~active)
        return output if self.use_inactive else output.masked_fill(~active, 0.0)


_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(RIMLayer.__init__).parameters.items()
    if parameter.default is not parameter.empty and name not in ("device", "dtype")
}


class RIM_LSTM(RIMLayer):
    r"""Recurrent Independent Mechanisms with LSTM dynamics; a drop-in for ``nn.LSTM``.

    ``nn.LSTM(600, 300)`` becomes ``RIM_LSTM(600, 300, 6, 4)``: 6 mechanisms of 50 units, of which
    the 4 that attend most to the input are updated at each step (arXiv:1909.10893). The equations
    of a step are at :class:`rims.RIM_LSTMCell`.

    Args:
        input_size: I, features of the input.
        hidden_size: D, features of the output: the total over all mechanisms. A sequence gives
            each layer its own.
        num_rims: N, number of mechanisms; divides ``hidden_size``. A sequence: per layer.
        k: mechanisms active per step, ``1 <= k <= num_rims``. A sequence: per layer.
        num_layers: stacked layers. Default 1.
        bias: whether there are biases. Default true.
        batch_first: input and output (and ``reset``) are ``(B, T, ...)``. Default false.
        dropout: probability of zeroing an entry between layers, in training mode. Default 0.
        bidirectional: also run backwards in time and join the outputs. Default false.
        proj_size: P, project every ``h`` to this total size. Default 0, no projection.
        device: where the parameters live.
        dtype: their type.
        input_slots: each step of the input is S elements ``(T, B, S, I)``, objects or image
            patches say, and the first layer's mechanisms attend to them and the null slot.
            Default false.
        use_inactive: the next layer also reads inactive mechanisms; false: reads zeros there.
            Default true.
        blocked_grad: no gradient passes from the next layer into inactive mechanisms.
            Default false.
        options: the other keyword-only options of :class:`rims.RIM_LSTMCell`: heads, sizes and
            dropout of the attentions, ``comm_reads``, ``learned_initial_state``.

    Shape:
        - input ``(T, B, I)``, ``(B, T, I)`` if ``batch_first``, ``(T, I)``, ``PackedSequence``,
          ``RepeatedInput``
        - ``h_0`` (layers * directions, B, P or D), ``c_0`` (layers * directions, B, D); where
          layers differ in size, a tuple of one tensor (directions, B, D_l) per layer
        - output ``(T, B, directions * D)`` in the form of the input

    Returns:
        ``output, (h_n, c_n)``.

    Raises:
        ValueError, RuntimeError: as ``nn.LSTM`` for the same mistake.

    Example:
        >>> layer = RIM_LSTM(600, 300, 6, 4)
        >>> output, (h_n, c_n) = layer(torch.randn(5, 3, 600))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 300]), torch.Size([1, 3, 300]), torch.Size([1, 3, 300]))
    """

    cell_type = RIM_LSTMCell

    def forward(
        self,
        input: Tensor | PackedSequence | RepeatedInput,
        hx: tuple[Stacked, Stacked] | None = None,
        *,
        reset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Any, tuple[Stacked, Stacked]]:
        """Run the sequence; ``hx`` defaults to zeros.

        ``reset`` is bool, one flag per step and sequence in the layout of the input (``(T, B)``);
        where true the state is zeroed before that step (set to the learned initial state, if
        there is one), so one call runs over the ends of episodes. It equals splitting there.

        ``mask`` is bool in the same layout; where false the step is padding: states stay as they
        are and the output repeats the last one. Bidirectional layers can skip only the ends of
        sequences. It cannot be combined with ``reset``.
        """
        leaf = as_leaf(self, input, hx, reset=reset, mask=mask)
        if leaf is not None:
            return leaf  # type: ignore[no-any-return]
        if isinstance(hx, Tensor):
            raise RuntimeError("RIM_LSTM: hx must be a pair (h_0, c_0); got one tensor.")
        parts = None if hx is None else tuple(hx)
        input, repeated = unrepeat(input)
        if isinstance(input, Tensor) and not self.proj_size:
            # Under autocast torch converts the input and the state of an LSTM, but of no GRU,
            # packed sequence or projection.
            input = to_autocast_dtype(input)
            parts = parts and tuple(to_autocast_dtype(part) for part in parts)
        output, (h_n, c_n) = self._run(input, parts, reset, mask, repeated)
        return output, (h_n, c_n)


class RIM_GRU(RIMLayer):
    r"""Recurrent Independent Mechanisms with GRU dynamics; a drop-in for ``nn.GRU``.

    As :class:`RIM_LSTM`, with the step of :class:`rims.RIM_GRUCell`.

    Args:
        input_size: I, features of the input.
        hidden_size: D, features of the output: the total over all mechanisms.
        num_rims: N, number of mechanisms; divides ``hidden_size``.
        k: mechanisms active per step, ``1 <= k <= num_rims``.
        num_layers: stacked layers. Default 1.
        bias: whether there are biases. Default true.
        batch_first: input and output (and ``reset``) are ``(B, T, ...)``. Default false.
        dropout: probability of zeroing an entry between layers, in training mode. Default 0.
        bidirectional: also run backwards in time and join the outputs. Default false.
        device: where the parameters live.
        dtype: their type.
        input_slots: see :class:`RIM_LSTM`.
        use_inactive: see :class:`RIM_LSTM`.
        blocked_grad: see :class:`RIM_LSTM`.
        options: the keyword-only options of :class:`rims.RIM_GRUCell`.

    Shape:
        input ``(T, B, I)``, ``h_0`` (layers * directions, B, D), output ``(T, B, directions * D)``;
        otherwise as :class:`RIM_LSTM`.

    Returns:
        ``output, h_n``.

    Raises:
        ValueError, RuntimeError: as ``nn.GRU`` for the same mistake.

    Example:
        >>> output, h_n = RIM_GRU(600, 300, 6, 4)(torch.randn(5, 3, 600))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 300]), torch.Size([1, 3, 300]))
    """

    cell_type = RIM_GRUCell

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_slots: bool = False,
        use_inactive: bool = True,
        blocked_grad: bool = False,
        **options: Unpack[CellOptions],
    ) -> None:
        if "proj_size" in options:
            raise ValueError("RIM_GRU: proj_size is for RIM_LSTM only, as in nn.GRU.")
        super().__init__(
            input_size, hidden_size, num_rims, k, num_layers, bias, batch_first, dropout,
            bidirectional, 0, device, dtype,
            input_slots=input_slots,
            use_inactive=use_inactive,
            blocked_grad=blocked_grad,
            **options,
        )  # fmt: skip

    def forward(
        self,
        input: Tensor | PackedSequence | RepeatedInput,
        hx: Stacked | None = None,
        *,
        reset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Any, Stacked]:
        """Run the sequence; ``hx``, ``reset`` and ``mask`` as in :meth:`RIM_LSTM.forward`."""
        leaf = as_leaf(self, input, hx, reset=reset, mask=mask)
        if leaf is not None:
            return leaf  # type: ignore[no-any-return]
        input, repeated = unrepeat(input)
        parts = None if hx is None else (hx,)
        output, (h_n,) = self._run(input, parts, reset, mask, repeated)
        return output, h_n
