"""The two attentions of a RIM cell: parameters around :mod:`rims.functional`."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rims.functional import AttentionOutput, grouped_linear, null_attention, sparse_attention


class InputRead(NamedTuple):
    """What every mechanism reads from the input of a step."""

    read: Tensor  # (B, N, A) attended value
    weights: Tensor  # (B, N, 2) attention on the null slot and on the input
    score: Tensor  # (B, N) the score by which mechanisms compete


class InputAttention(nn.Module):
    r"""Each mechanism attends to the input of the step or to nothing (arXiv:1909.10893, Eq. 1).

    .. math:: l_m = (h_m W^q_m) \cdot (x W^k) / \sqrt{d_k}, \qquad
              u_m = \sigma(l_m)\; x W^v

    The null slot has a zero key and a zero value, so the softmax over the two slots is a sigmoid.
    Keys and values use one matrix for all mechanisms; queries have one per mechanism.

    Args:
        input_size: I, features of the input.
        unit_size: d, features of one mechanism's state.
        num_rims: N.
        key_size: features of queries and keys. Default 64.
        value_size: A, features of what a mechanism reads.
        dropout: probability of zeroing an entry of what is read, in training mode. Default 0.
        device: where the parameters live.
        dtype: their type.

    Shape:
        ``(B, I), (B, N, d) -> InputRead((B, N, A), (B, N, 2), (B, N))``

    Example:
        >>> attention = InputAttention(5, 3, num_rims=4, value_size=12)
        >>> attention(torch.zeros(2, 5), torch.zeros(2, 4, 3)).read.shape
        torch.Size([2, 4, 12])
    """

    def __init__(
        self,
        input_size: int,
        unit_size: int,
        num_rims: int,
        *,
        key_size: int = 64,
        value_size: int,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.query_weight = nn.Parameter(empty(num_rims, unit_size, key_size))
        self.key_weight = nn.Parameter(empty(input_size, key_size))
        self.value_weight = nn.Parameter(empty(input_size, value_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw every weight from :math:`U(-1/\sqrt{fan}, 1/\sqrt{fan})`, its own fan-in."""
        for weight in (self.query_weight, self.key_weight, self.value_weight):
            uniform_(weight, fan_in=weight.shape[-2])

    def forward(self, input: Tensor, h_prev: Tensor) -> InputRead:
        """Read the input ``(B, I)`` by the states ``(B, N, d)``."""
        query = grouped_linear(h_prev, self.query_weight)  # (B, N, dk)
        key = input @ self.key_weight  # (B, dk)
        value = input @ self.value_weight  # (B, A)
        score = (query @ key.unsqueeze(-1)).squeeze(-1) / math.sqrt(key.shape[-1])  # (B, N)
        weights = null_attention(score)  # (B, N, 2)
        read = weights[..., 1:] * value.unsqueeze(1)  # (B, N, A)
        return InputRead(F.dropout(read, self.dropout, self.training), weights, score)


class CommunicationAttention(nn.Module):
    r"""Mechanisms read each other, gated (arXiv:1909.10893, section 3.4; gate as in their code).

    .. math:: R_m = \big\Vert_j \sum_n \mathrm{softmax}_n(Q^j_m \cdot K^j_n / \sqrt{d_k}) V^j_n,
              \qquad update_m = \sigma(W_g R_m + b_g) \tanh(W_o R_m + b_o)

    Queries, keys and values have one matrix per mechanism; output and gate are shared.

    Args:
        unit_size: d, features of one mechanism's state.
        num_rims: N.
        num_heads: M. Default 4.
        key_size: features of a query or key, per head. Default 16.
        value_size: features of a value, per head. Default 16.
        bias: whether output and gate have a bias. Default true.
        dropout: probability of zeroing an entry of the update, in training mode. Default 0.
        device: where the parameters live.
        dtype: their type.

    Shape:
        ``(B, N, d) -> AttentionOutput((B, N, d), (B, M, N, N))``; weights are [reader, read].

    Example:
        >>> communication = CommunicationAttention(3, num_rims=4)
        >>> update, weights = communication(torch.zeros(2, 4, 3))
        >>> update.shape, weights.shape
        (torch.Size([2, 4, 3]), torch.Size([2, 4, 4, 4]))
    """

    def __init__(
        self,
        unit_size: int,
        num_rims: int,
        *,
        num_heads: int = 4,
        key_size: int = 16,
        value_size: int = 16,
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.query_weight = nn.Parameter(empty(num_rims, unit_size, num_heads * key_size))
        self.key_weight = nn.Parameter(empty(num_rims, unit_size, num_heads * key_size))
        self.value_weight = nn.Parameter(empty(num_rims, unit_size, num_heads * value_size))
        self.output_weight = nn.Parameter(empty(unit_size, num_heads * value_size))
        self.gate_weight = nn.Parameter(empty(unit_size, num_heads * value_size))
        self.output_bias = nn.Parameter(empty(unit_size)) if bias else None
        self.gate_bias = nn.Parameter(empty(unit_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw every parameter from :math:`U(-1/\sqrt{fan}, 1/\sqrt{fan})`, its map's fan-in."""
        for weight in (self.query_weight, self.key_weight, self.value_weight):
            uniform_(weight, fan_in=weight.shape[-2])
        for parameter in (self.output_weight, self.gate_weight, self.output_bias, self.gate_bias):
            if parameter is not None:
                uniform_(parameter, fan_in=self.output_weight.shape[-1])

    def forward(self, h: Tensor) -> AttentionOutput:
        """Return what each mechanism adds to its state ``(B, N, d)``, and who read whom."""
        query = self._heads(h, self.query_weight)  # (B, M, N, dk)
        key = self._heads(h, self.key_weight)  # (B, M, N, dk)
        value = self._heads(h, self.value_weight)  # (B, M, N, dv)
        read, weights = sparse_attention(query, key, value)  # (B, M, N, dv), (B, M, N, N)
        read = read.transpose(1, 2).flatten(2)  # (B, M, N, dv) -> (B, N, M dv)
        gate = F.linear(read, self.gate_weight, self.gate_bias).sigmoid()  # (B, N, d)
        update = gate * F.linear(read, self.output_weight, self.output_bias).tanh()
        return AttentionOutput(F.dropout(update, self.dropout, self.training), weights)

    def _heads(self, h: Tensor, weight: Tensor) -> Tensor:
        # (B, N, d) -> (B, N, M dk) -> (B, M, N, dk)
        batch, num_rims, _ = h.shape
        width = weight.shape[-1] // self.num_heads
        joined = grouped_linear(h, weight)
        return joined.reshape(batch, num_rims, self.num_heads, width).transpose(1, 2)


def uniform_(parameter: Tensor, *, fan_in: int) -> None:
    r"""Fill with :math:`U(-1/\sqrt{fan_{in}}, 1/\sqrt{fan_{in}})`, the law of ``nn.Linear``."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(parameter, -bound, bound)
