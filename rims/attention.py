"""The two attentions of a RIM cell, as functions of its parameters."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from rims.functional import AttentionOutput, grouped_linear, null_softmax, sparse_attention
from rims.parameters import Parameters


class InputRead(NamedTuple):
    """What every mechanism reads from the input of a step."""

    read: Tensor  # (B, N, A) attended value
    weights: Tensor  # (B, N, 1 + S) attention on the null slot and on the S elements, head average
    score: Tensor  # (B, N) the score by which mechanisms compete


def read_input(
    p: Parameters, elements: Tensor, h_prev: Tensor, *, num_heads: int = 1, dropout: float = 0.0
) -> InputRead:
    r"""Each mechanism attends to the elements of the input or to nothing (arXiv:1909.10893, Eq. 1).

    .. math:: l_{m,s} = (h_m W^q_m) \cdot (x_s W^k) / \sqrt{d_k}, \qquad
              p_m = \mathrm{softmax}(0, l_{m,1}, \dots, l_{m,S}), \qquad
              u_m = \sum_s p_{m,s}\, x_s W^v

    The null slot (score 0) has a zero key and a zero value. With one element, as by default, its
    weight is :math:`\sigma(l_m)`. Keys and values use one matrix for all mechanisms; queries have
    one per mechanism. Mechanisms compete by :math:`\log \sum_s e^{l_{m,s}}`, the log odds of
    reading anything at all (averaged over heads), which for one element is :math:`l_m`.

    Args:
        p: ``query_weight``, ``key_weight`` and ``value_weight``.
        elements: ``(B, S, I)``.
        h_prev: ``(B, N, d)``.
        num_heads: heads; each reads its own part of the A features.
        dropout: probability of zeroing an entry of what is read.

    Returns:
        ``InputRead((B, N, A), (B, N, 1 + S), (B, N))``.

    Example:
        >>> import torch
        >>> from rims import RIM_GRUCell
        >>> p = Parameters.of(RIM_GRUCell(5, 12, num_rims=4, k=2))
        >>> read_input(p, torch.zeros(2, 1, 5), torch.zeros(2, 4, 3)).read.shape
        torch.Size([2, 4, 12])
    """
    query = split_heads(grouped_linear(h_prev, p.query_weight), num_heads)  # (B, M, N, dk)
    key = split_heads(elements @ p.key_weight, num_heads)  # (B, M, S, dk)
    value = split_heads(elements @ p.value_weight, num_heads)  # (B, M, S, A / M)
    scores = (query / math.sqrt(query.shape[-1])) @ key.mT  # (B, M, N, S)
    weights = null_softmax(scores)  # (B, M, N, 1 + S)
    read = join_heads(weights[..., 1:] @ value)  # (B, N, A)
    return InputRead(F.dropout(read, dropout), weights.mean(1), scores.logsumexp(-1).mean(1))


def communicate(
    p: Parameters, h: Tensor, *, num_heads: int = 4, dropout: float = 0.0
) -> AttentionOutput:
    r"""Mechanisms read each other, gated (arXiv:1909.10893, section 3.4; gate as in their code).

    .. math:: R_m = \big\Vert_j \sum_n \mathrm{softmax}_n(Q^j_m \cdot K^j_n / \sqrt{d_k}) V^j_n,
              \qquad update_m = \sigma(W_g R_m + b_g) \tanh(W_o R_m + b_o)

    Queries, keys and values have one matrix per mechanism; output and gate are shared.

    Args:
        p: those whose names begin with ``comm_``.
        h: ``(B, N, d)``.
        num_heads: M.
        dropout: probability of zeroing an entry before the tanh.

    Returns:
        What each mechanism adds to its state, and who read whom:
        ``AttentionOutput((B, N, d), (B, M, N, N))``; weights are [reader, read].

    Example:
        >>> import torch
        >>> from rims import RIM_GRUCell
        >>> p = Parameters.of(RIM_GRUCell(5, 12, num_rims=4, k=2))
        >>> update, weights = communicate(p, torch.zeros(2, 4, 3))
        >>> update.shape, weights.shape
        (torch.Size([2, 4, 3]), torch.Size([2, 4, 4, 4]))
    """
    query = split_heads(grouped_linear(h, p.comm_query_weight), num_heads)  # (B, M, N, dc)
    key = split_heads(grouped_linear(h, p.comm_key_weight), num_heads)  # (B, M, N, dc)
    value = split_heads(grouped_linear(h, p.comm_value_weight), num_heads)  # (B, M, N, dv)
    read, weights = sparse_attention(query, key, value)  # (B, M, N, dv), (B, M, N, N)
    joined = join_heads(read)  # (B, N, M dv)
    gate = F.linear(joined, p.comm_gate_weight, p.comm_gate_bias).sigmoid()  # (B, N, d)
    output = F.linear(joined, p.comm_output_weight, p.comm_output_bias)  # (B, N, d)
    return AttentionOutput(gate * F.dropout(output, dropout).tanh(), weights)


def split_heads(joined: Tensor, num_heads: int) -> Tensor:
    """(B, rows, M width) -> (B, M, rows, width), heads outermost in the last axis."""
    batch, rows, width = joined.shape
    return joined.reshape(batch, rows, num_heads, width // num_heads).transpose(1, 2)


def join_heads(split: Tensor) -> Tensor:
    """(B, M, rows, width) -> (B, rows, M width)."""
    return split.transpose(1, 2).flatten(2)
