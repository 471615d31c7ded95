"""The two attentions of a RIM cell: parameters around :mod:`rims.functional`."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rims.functional import AttentionOutput, grouped_linear, null_softmax, sparse_attention


class InputRead(NamedTuple):
    """What every mechanism reads from the input of a step."""

    read: Tensor  # (B, N, A) attended value
    weights: Tensor  # (B, N, 1 + S) attention on the null slot and on the S elements, head average
    score: Tensor  # (B, N) the score by which mechanisms compete


class InputAttention(nn.Module):
    r"""Each mechanism attends to the elements of the input or to nothing (arXiv:1909.10893, Eq. 1).

    .. math:: l_{m,s} = (h_m W^q_m) \cdot (x_s W^k) / \sqrt{d_k}, \qquad
              p_m = \mathrm{softmax}(0, l_{m,1}, \dots, l_{m,S}), \qquad
              u_m = \sum_s p_{m,s}\, x_s W^v

    The null slot (score 0) has a zero key and a zero value. With one element, as by default, its
    weight is :math:`\sigma(l_m)`. Keys and values use one matrix for all mechanisms; queries have
    one per mechanism. Mechanisms compete by :math:`\log \sum_s e^{l_{m,s}}`, the log odds of
    reading anything at all (averaged over heads), which for one element is :math:`l_m`.

    Args:
        input_size: I, features of an element.
        unit_size: d, features of one mechanism's state.
        num_rims: N.
        num_heads: heads; each reads its own part of the A features. Default 1.
        key_size: features of a query or key, per head. Default 64.
        value_size: A, features of what a mechanism reads, over all heads.
        dropout: probability of zeroing an entry of what is read, in training mode. Default 0.
        device: where the parameters live.
        dtype: their type.

    Shape:
        ``(B, S, I), (B, N, d) -> InputRead((B, N, A), (B, N, 1 + S), (B, N))``

    Example:
        >>> attention = InputAttention(5, 3, num_rims=4, value_size=12)
        >>> attention(torch.zeros(2, 1, 5), torch.zeros(2, 4, 3)).read.shape
        torch.Size([2, 4, 12])
    """

    def __init__(
        self,
        input_size: int,
        unit_size: int,
        num_rims: int,
        *,
        num_heads: int = 1,
        key_size: int = 64,
        value_size: int,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.query_weight = nn.Parameter(empty(num_rims, unit_size, num_heads * key_size))
        self.key_weight = nn.Parameter(empty(input_size, num_heads * key_size))
        self.value_weight = nn.Parameter(empty(input_size, value_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw every weight from :math:`U(-1/\sqrt{fan}, 1/\sqrt{fan})`, its own fan-in."""
        for weight in (self.query_weight, self.key_weight, self.value_weight):
            uniform_(weight, fan_in=weight.shape[-2])

    def forward(self, input: Tensor, h_prev: Tensor) -> InputRead:
        """Read the elements ``(B, S, I)`` by the states ``(B, N, d)``."""
        query = split_heads(grouped_linear(h_prev, self.query_weight), self.num_heads)
        key = split_heads(input @ self.key_weight, self.num_heads)  # (B, M, S, dk)
        value = split_heads(input @ self.value_weight, self.num_heads)  # (B, M, S, A / M)
        scores = (query / math.sqrt(query.shape[-1])) @ key.mT  # (B, M, N, S)
        weights = null_softmax(scores)  # (B, M, N, 1 + S)
        read = join_heads(weights[..., 1:] @ value)  # (B, N, A)
        return InputRead(
            F.dropout(read, self.dropout, self.training),
            weights.mean(1),
            scores.logsumexp(-1).mean(1),
        )


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
        dropout: probability of zeroing an entry before the tanh, in training mode. Default 0.
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
        query = split_heads(grouped_linear(h, self.query_weight), self.num_heads)
        key = split_heads(grouped_linear(h, self.key_weight), self.num_heads)  # (B, M, N, dk)
        value = split_heads(grouped_linear(h, self.value_weight), self.num_heads)  # (B, M, N, dv)
        read, weights = sparse_attention(query, key, value)  # (B, M, N, dv), (B, M, N, N)
        joined = join_heads(read)  # (B, N, M dv)
        gate = F.linear(joined, self.gate_weight, self.gate_bias).sigmoid()  # (B, N, d)
        output = F.linear(joined, self.output_weight, self.output_bias)  # (B, N, d)
        output = F.dropout(output, self.dropout, self.training)
        return AttentionOutput(gate * output.tanh(), weights)


def split_heads(joined: Tensor, num_heads: int) -> Tensor:
    """(B, rows, M width) -> (B, M, rows, width), heads outermost in the last axis."""
    batch, rows, width = joined.shape
    return joined.reshape(batch, rows, num_heads, width // num_heads).transpose(1, 2)


def join_heads(split: Tensor) -> Tensor:
    """(B, M, rows, width) -> (B, rows, M width)."""
    return split.transpose(1, 2).flatten(2)


def uniform_(parameter: Tensor, *, fan_in: int) -> None:
    r"""Fill with :math:`U(-1/\sqrt{fan_{in}}, 1/\sqrt{fan_{in}})`, the law of ``nn.Linear``."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(parameter, -bound, bound)
