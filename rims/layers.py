"""RIM_LSTM and RIM_GRU: drop-in layers for nn.LSTM and nn.GRU."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rims.base_layer import PerLayer, RIMLayer
from rims.cells import CellOptions, RIM_GRUCell, RIM_LSTMCell
from rims.interop.fx import as_leaf
from rims.layout.batching import RepeatedInput, unrepeat
from rims.layout.hidden_state import Stacked, to_autocast_dtype


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
            dropout of the attentions, ``input_gate``, ``competition``, ``tie_margin``,
            ``comm_reads``, ``comm_update``, ``comm_gate_bias``, ``learned_initial_state``.

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
