"""The two attentions of a RIM cell, as functions of its parameters."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rims.checks import CommUpdate, Competition, InputGate
from rims.functional import (
    AttentionOutput,
    grouped_linear,
    null_softmax,
    sparse_attention,
    threshold_softmax,
    topk_mask,
)
from rims.parameters import Parameters


class InputRead(NamedTuple):
    """What every mechanism reads from the input of a step."""

    read: Tensor  # (B, N, A) attended value
    weights: Tensor  # (B, N, 1 + S) attention on the null slot and on the S elements, head average
    score: Tensor  # (B, N) the score by which mechanisms compete


def read_input(
    p: Parameters,
    elements: Tensor,
    h_prev: Tensor,
    *,
    num_heads: int = 1,
    dropout: float = 0.0,
    gate: InputGate = "null",
    competition: Competition = "null",
    k: int = 1,
) -> InputRead:
    r"""Each mechanism attends to the elements of the input or to nothing (arXiv:1909.10893, Eq. 1).

    .. math:: l_{m,s} = (h_m W^q_m) \cdot (x_s W^k) / \sqrt{d_k}, \qquad
              p_m = \mathrm{softmax}(0, l_{m,1}, \dots, l_{m,S}), \qquad
              u_m = \sum_s p_{m,s}\, x_s W^v

    The null slot (score 0) has a zero key and a zero value. With one element, as by default, its
    weight is :math:`\sigma(l_m)`. Keys and values use one matrix for all mechanisms; queries have
    one per mechanism. Mechanisms compete by :math:`\log \sum_s e^{l_{m,s}}`, the log odds of
    reading anything at all (averaged over heads), which for one element is :math:`l_m`.

    What is read is the weight of all elements, the gate :math:`g_m = \sum_s p_{m,s}`, times what
    their softmax without the null slot reads, :math:`q_m = \mathrm{softmax}(l_m)`:

    .. math:: u_m = \hat g_m \sum_s q_{m,s}\, x_s W^v, \qquad
              \hat g_m \in \{g_m,\; 1,\; 1 + g_m - \mathrm{sg}(g_m)\}

    for ``gate="null"``, ``"none"`` and ``"straight_through"`` (arXiv:1308.3432): the last has the
    value 1, and the gradient that :math:`g_m` has. With ``competition="mechanisms"`` there is no
    null slot; :math:`g_m` is the share of mechanism m in a softmax over mechanisms of these log
    odds, cut at its (k+1)-th largest (:func:`rims.functional.threshold_softmax`; the authors' Atari
    code, version 2).

    Args:
        p: ``query_weight``, ``key_weight`` and ``value_weight``.
        elements: ``(B, S, I)``.
        h_prev: ``(B, N, d)``.
        num_heads: heads; each reads its own part of the A features.
        dropout: probability of zeroing an entry of what is read.
        gate: factor of what is read. Default ``"null"``, the attention itself.
        competition: what the attention competes with. Default ``"null"``, a null slot.
        k: number of active mechanisms; used by ``competition="mechanisms"`` alone.

    Returns:
        ``InputRead((B, N, A), (B, N, 1 + S), (B, N))``. Without a null slot its weight is 0.

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
    odds = scores.logsumexp(-1)  # (B, M, N)
    if competition == "null":
        weights = null_softmax(scores)  # (B, M, N, 1 + S)
    else:
        share = threshold_softmax(odds, k).unsqueeze(-1)  # (B, M, N, 1)
        weights = F.pad(share * scores.softmax(-1), (1, 0))
    read = (weights[..., 1:] if gate == "null" else scores.softmax(-1)) @ value  # (B, M, N, A / M)
    if gate == "straight_through":
        share = weights[..., 1:].sum(-1, keepdim=True)
        read = read * (1 + (share - share.detach()))
    return InputRead(F.dropout(join_heads(read), dropout), weights.mean(1), odds.mean(1))


def select(
    score: Tensor, k: int, *, competition: Competition = "null", margin: float = 0.0
) -> Tensor:
    r"""Mark the k mechanisms of the largest scores, and with a margin all that are as good.

    .. math:: active_m = [m \in \mathcal{T}_k] \lor [w_m > w_{(k)} - margin]

    with :math:`w` the attention that the scores stand for, :math:`\sigma(l)` against the null slot
    or a softmax over mechanisms, and :math:`w_{(k)}` its k-th largest. The margin is that of
    github.com/alexmlamb/blocks_rl_gru_setup, 0.01 there. A state of zeros ties all mechanisms, so
    with a margin all of them are active at the first step.

    Args:
        score: ``(B, N)``; no gradient passes through the selection.
        k: number of mechanisms, at least.
        competition: see :func:`read_input`. Default ``"null"``.
        margin: difference of attention that counts as none. Default 0: exactly k are marked, of
            equal ones the lowest indices (:func:`rims.functional.topk_mask`).

    Returns:
        Bool tensor ``(B, N)``.

    Example:
        >>> import torch
        >>> select(torch.tensor([[0.0, 2.0, 0.01]]), 2).tolist()
        [[False, True, True]]
        >>> select(torch.tensor([[0.0, 2.0, 0.01]]), 2, margin=0.01).tolist()
        [[True, True, True]]
    """
    active = topk_mask(score, k)
    if not margin:
        return active
    score = score.detach()
    weight = score.sigmoid() if competition == "null" else score.softmax(-1)
    least = weight.masked_fill(~active, math.inf).amin(-1, keepdim=True)
    return active | (weight > least - margin)


def communicate(
    p: Parameters,
    h: Tensor,
    *,
    num_heads: int = 4,
    dropout: float = 0.0,
    update: CommUpdate = "additive",
) -> AttentionOutput:
    r"""Mechanisms read each other, gated (arXiv:1909.10893, section 3.4; gate as in their code).

    .. math:: R_m = \big\Vert_j \sum_n \mathrm{softmax}_n(Q^j_m \cdot K^j_n / \sqrt{d_k}) V^j_n,
              \qquad update_m = \sigma(W_g R_m + b_g) \tanh(W_o R_m + b_o)

    Queries, keys and values have one matrix per mechanism; output and gate are shared. With
    ``update="convex"`` the state is mixed instead, as in github.com/alexmlamb/blocks_rl_gru_setup:

    .. math:: update_m = g_m (\tanh(W_o R_m + b_o) - h_m), \qquad
              h_m + update_m = (1 - g_m)\, h_m + g_m \tanh(W_o R_m + b_o)

    Args:
        p: those whose names begin with ``comm_``.
        h: ``(B, N, d)``.
        num_heads: M; 0: nothing is read and nothing added.
        dropout: probability of zeroing an entry before the tanh.
        update: ``"additive"`` (default) or ``"convex"``.

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
    if not num_heads:
        return AttentionOutput(torch.zeros_like(h), h.new_zeros(len(h), 0, *[h.shape[1]] * 2))
    query_weight, key_weight, value_weight, output_weight, gate_weight = p.of_communication()
    query = split_heads(grouped_linear(h, query_weight), num_heads)  # (B, M, N, dc)
    key = split_heads(grouped_linear(h, key_weight), num_heads)  # (B, M, N, dc)
    value = split_heads(grouped_linear(h, value_weight), num_heads)  # (B, M, N, dv)
    read, weights = sparse_attention(query, key, value)  # (B, M, N, dv), (B, M, N, N)
    joined = join_heads(read)  # (B, N, M dv)
    gate = F.linear(joined, gate_weight, p.comm_gate_bias).sigmoid()  # (B, N, d)
    output = F.linear(joined, output_weight, p.comm_output_bias)  # (B, N, d)
    output = F.dropout(output, dropout).tanh()
    return AttentionOutput(gate * (output - h if update == "convex" else output), weights)


def split_heads(joined: Tensor, num_heads: int) -> Tensor:
    """(B, rows, M width) -> (B, M, rows, width), heads outermost in the last axis."""
    batch, rows, width = joined.shape
    return joined.reshape(batch, rows, num_heads, width // num_heads).transpose(1, 2)


def join_heads(split: Tensor) -> Tensor:
    """(B, M, rows, width) -> (B, rows, M width)."""
    return split.transpose(1, 2).flatten(2)
