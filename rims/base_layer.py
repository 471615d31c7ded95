"""Base of RIM_LSTM and RIM_GRU: layers, directions, packing, hx, as nn.LSTM has them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rims.checks import (
    CellOptions,
    check_count,
    check_flag,
    check_probability,
    option_defaults,
    per_layer,
)
from rims.functional import stop_gradient_where
from rims.layout.batching import (
    RepeatedInput,
    as_it_is,
    check_input,
    require_ends_only,
    side_by_side,
    time_major_flags,
    time_major_places,
    to_time_major,
)
from rims.layout.hidden_state import Stacked, join_states, split_hx
from rims.scan import Over, ScanOutput, is_recomputing
from rims.step import RIMCell, State

#: Takes the index of a cell, its output, the valid steps, and the caller's order of rows.
Recorder = Callable[[int, ScanOutput, Tensor | None, Tensor | None], None]

#: One number for all layers, or one per layer.
PerLayer = int | list[int] | tuple[int, ...]


class RIMLayer(nn.Module):
    """Base class of RIM_LSTM and RIM_GRU; options are documented there."""

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

        options_of_cell: dict[str, Any] = dict(options, device=device, dtype=dtype)
        if proj_size:
            options_of_cell["proj_size"] = proj_size
        self.cells = self._new_cells(sizes, counts, actives, options_of_cell)

    def _new_cells(
        self,
        sizes: tuple[int, ...],
        counts: tuple[int, ...],
        actives: tuple[int, ...],
        options: dict[str, Any],
    ) -> nn.ModuleList:
        """The cells of all layers and directions; each layer reads the outputs of the one below."""
        cells = nn.ModuleList()
        width = self.input_size
        for layer, (size, num_rims, k) in enumerate(zip(sizes, counts, actives, strict=True)):
            input_slots = self.input_slots and layer == 0
            for _ in range(self.num_directions):
                cell = self.cell_type(
                    width, size, num_rims, k, self.bias, input_slots=input_slots, **options
                )
                cells.append(cell)
            width = (self.proj_size or size) * self.num_directions
        return cells

    @property
    def rim_cells(self) -> list[RIMCell]:
        """The cells by their type: layer after layer, in each the directions."""
        return [cast(RIMCell, cell) for cell in self.cells]

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles: everything but the recorders of this layer."""
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
        """The forward pass, apart from the form of hx, which differs between LSTM and GRU."""
        where, unbatched_dim = type(self).__name__, 3 if self.input_slots else 2
        check_input(where, input, self.input_size, self.batch_first, unbatched_dim=unbatched_dim)
        cells = self.rim_cells
        batch = to_time_major(input, self.batch_first, unbatched_dim=unbatched_dim)
        if mask is not None:
            valid = time_major_flags(where, "mask", mask, batch)
            if self.bidirectional:
                require_ends_only(where, valid)
            # Outputs of padding are discarded, but not their gradient: zero times NaN is NaN.
            skipped = ~valid.reshape(valid.shape + (1,) * (batch.input.dim() - 2))
            batch = batch._replace(valid=valid, input=batch.input.masked_fill(skipped, 0.0))
        reset_steps = None if reset is None else time_major_flags(where, "reset", reset, batch)
        states = split_hx(where, cells, hx, batch, self.num_directions)
        # A packed nn.LSTM raises another class for a wrong type than the other layers.
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
                # The cell itself is called: tools (hooks, pruning) act on calls.
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
        """Input of the next layer, by ``use_inactive`` and ``blocked_grad``."""
        output = scanned.output
        if self.use_inactive and not self.blocked_grad:
            return output
        unit_size = output.shape[-1] // scanned.active.shape[-1]
        active = scanned.active.repeat_interleave(unit_size, dim=-1)  # (T, B, N) -> (T, B, D)
        if self.blocked_grad:
            output = stop_gradient_where(output, ~active)
        return output if self.use_inactive else output.masked_fill(~active, 0.0)


_DEFAULTS = option_defaults(RIMLayer.__init__)
