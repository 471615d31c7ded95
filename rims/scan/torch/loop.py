r"""The recurrent part of a sequence in PyTorch, one step at a time, forward and back.

The input side of a step does not depend on the state, so it is computed before the loop
(:mod:`rims.scan.hoisted`) and enters here as two arrays per step, with :math:`x` the input:

.. math:: U_m = W^q_m (x W^k)^\top / \sqrt{d_k}, \qquad G_m = W^{ih}_m (x W^v)

so that the score of a mechanism is :math:`l_m = h_m \cdot U_m` and the input's part of its gates
:math:`\sigma(l_m)\, G_m + b^{ih}_m` (arXiv:1909.10893, Eq. 1; the null slot has score 0). Other
choices of ``input_gate`` and ``competition`` put another factor before G
(:func:`rims.attention.read_input`).

This loop runs on every device and in every type. It is the fallback of the native ones and says in
PyTorch what they compute.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rims.attention import join_heads, split_heads
from rims.functional import (
    grouped_linear,
    gru_candidate,
    lstm_candidate,
    sparse_attention,
    stop_gradient_where,
    threshold_softmax,
    threshold_softmax_gradient,
    topk_mask,
)
from rims.scan.problem import Rules, Weights


class Step(NamedTuple):
    """One step for a batch, with what its gradient needs."""

    h: Tensor  # (B, N, d)
    c: Tensor | None
    active: Tensor  # (B, N) bool
    score: Tensor  # (B, N) l
    share: Tensor  # (B, N) sigma(l), the attention on the input
    from_input: Tensor  # (B, N, G d) the input's half of the gates, bias included
    from_state: Tensor  # (B, N, G d) the state's half
    h_cand: Tensor  # (B, N, d)
    comm_input: Tensor  # (B, N, d) what the others read
    query: Tensor  # (B, M, N, dc)
    key: Tensor
    value: Tensor  # (B, M, N, dv)
    weights: Tensor  # (B, M, N, N)
    read: Tensor  # (B, N, M dv)
    gate: Tensor  # (B, N, d) after the sigmoid
    output: Tensor  # (B, N, d) after the tanh


def step(
    query_side: Tensor, gate_side: Tensor, h: Tensor, c: Tensor | None, w: Weights, rules: Rules
) -> Step:
    """Advance the state (B, N, d) by one input, given as U (B, N, d) and G (B, N, G d).

    Differentiable, with the gradients that :meth:`rims.step.RIMCell.step` stops.
    """
    score = (h * query_side).sum(-1)
    null = rules.competition == "null"
    share = score.sigmoid() if null else threshold_softmax(score, rules.k)
    active = topk_mask(score, rules.k)
    is_active = active.unsqueeze(-1)
    from_input = _gated(gate_side, share, rules.input_gate)
    if w.bias_ih is not None:
        from_input = from_input + w.bias_ih
    from_state = grouped_linear(h, w.hh.mT, w.bias_hh)
    if c is None:
        h_cand, c_cand = gru_candidate(from_input, from_state, h), None
    else:
        h_cand, c_cand = lstm_candidate(from_input + from_state, c)
    comm_input = torch.where(is_active, h_cand, h) if rules.reads_state else h_cand
    comm_input = stop_gradient_where(comm_input, ~is_active)
    communicated = _communicate(comm_input, w, rules.num_heads)
    return Step(
        torch.where(is_active, h_cand + communicated[-2] * communicated[-1], h),
        None if c is None or c_cand is None else torch.where(is_active, c_cand, c),
        active, score, share, from_input, from_state, h_cand, comm_input, *communicated,
    )  # fmt: skip


def _gated(gate_side: Tensor, share: Tensor, input_gate: str) -> Tensor:
    """The input's half of the gates without its bias, (B, N, G d)."""
    if input_gate == "none":
        return gate_side
    factor = share if input_gate == "null" else 1 + (share - share.detach())
    return factor.unsqueeze(-1) * gate_side


def _communicate(comm_input: Tensor, w: Weights, num_heads: int) -> tuple[Tensor, ...]:
    """Queries, keys, values, weights, what is read, gate and output."""
    if not num_heads:
        batch, n = comm_input.shape[:2]
        nothing, zeros = comm_input.new_zeros(batch, n, 0), torch.zeros_like(comm_input)
        weights = comm_input.new_zeros(batch, 0, n, n)
        return nothing, nothing, nothing, weights, nothing, zeros, zeros
    query, key, value = (
        split_heads(grouped_linear(comm_input, weight), num_heads)
        for weight in (w.comm_query, w.comm_key, w.comm_value)
    )
    read, weights = sparse_attention(query, key, value)
    joined = join_heads(read)
    gate = F.linear(joined, w.gate, w.gate_bias).sigmoid()
    output = F.linear(joined, w.output, w.output_bias).tanh()
    return query, key, value, weights, joined, gate, output


class StepGradient(NamedTuple):
    """Gradients of one step; sums over batch and time are left to the caller."""

    h: Tensor  # (B, N, d) of the state before the step
    c: Tensor | None
    query_side: Tensor  # (B, N, d) of U
    gate_side: Tensor  # (B, N, G d) of G
    input_gates: Tensor  # (B, N, G d) of the input's half of the gates
    state_gates: Tensor  # (B, N, G d) of the state's half; the same for an LSTM
    qkv: Tensor  # (B, N, 2 M dc + M dv) of queries, keys and values, before heads are split
    output_gate: Tensor  # (B, N, 2 d) of output and gate, before tanh and sigmoid


def step_gradient(
    grad_h: Tensor,
    grad_c: Tensor | None,
    did: Step,
    query_side: Tensor,
    gate_side: Tensor,
    h: Tensor,
    c: Tensor | None,
    w: Weights,
    rules: Rules,
) -> StepGradient:
    """Go back through one step from the gradients of its new state, each (B, N, d)."""
    is_active = did.active.unsqueeze(-1)
    zero = grad_h.new_zeros(())
    # An idle mechanism kept its state, so the state's gradient passes through unchanged.
    grad_new = torch.where(is_active, grad_h, zero)

    # communication, of active readers only
    d_output = grad_new * did.gate * (1 - did.output.square())
    d_gate = grad_new * did.output * did.gate * (1 - did.gate)
    qkv, d_comm_input = _attention_gradient(d_output @ w.output + d_gate @ w.gate, did, w, rules)

    # the mechanisms themselves; being read does not train an idle one
    d_cand = torch.where(is_active, grad_new + d_comm_input, zero)
    if c is None or grad_c is None:
        d_input, d_state, d_h = _gru_gradient(d_cand, did.from_input, did.from_state, h)
        d_c = None
    else:
        d_input, d_c = _lstm_gradient(
            d_cand, torch.where(is_active, grad_c, zero), did.from_input + did.from_state, c
        )
        d_state, d_h = d_input, zero
        d_c = torch.where(is_active, d_c, grad_c)
    d_h = d_h + grouped_linear(d_state, w.hh)
    d_score = _score_gradient((d_input * gate_side).sum(-1), did, rules).unsqueeze(-1)
    if rules.competition == "null":
        d_h = torch.where(is_active, d_h + d_score * query_side, grad_h)
    else:  # what is read depends on the scores of all mechanisms
        d_h = torch.where(is_active, d_h, grad_h) + d_score * query_side
    return StepGradient(
        d_h,
        d_c,
        d_score * h,
        d_input * did.share.unsqueeze(-1) if rules.input_gate == "null" else d_input,
        d_input,
        d_state,
        qkv,
        torch.cat([d_output, d_gate], dim=-1),
    )


def _attention_gradient(
    d_joined: Tensor, did: Step, w: Weights, rules: Rules
) -> tuple[Tensor, Tensor]:
    """Gradients of queries, keys and values side by side, and of what they were computed from."""
    if not rules.num_heads:
        return d_joined, torch.zeros_like(did.comm_input)
    d_read = split_heads(d_joined, rules.num_heads)
    d_weights = d_read @ did.value.mT
    d_value = did.weights.mT @ d_read
    d_scores = did.weights * (d_weights - (did.weights * d_weights).sum(-1, keepdim=True))
    d_scores = d_scores / math.sqrt(did.query.shape[-1])
    parts = [join_heads(part) for part in (d_scores @ did.key, d_scores.mT @ did.query, d_value)]
    query, key, value = (
        grouped_linear(part, weight.mT)
        for part, weight in zip(parts, (w.comm_query, w.comm_key, w.comm_value), strict=True)
    )
    return torch.cat(parts, dim=-1), query + key + value


def _score_gradient(d_share: Tensor, did: Step, rules: Rules) -> Tensor:
    """Gradient of the scores from that of the gate, (B, N)."""
    if rules.input_gate == "none":
        return torch.zeros_like(d_share)
    if rules.competition == "null":
        return d_share * did.share * (1 - did.share)
    return threshold_softmax_gradient(d_share, did.score, rules.k)


def _lstm_gradient(d_h: Tensor, d_c_new: Tensor, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the gates (before their sigmoids) and of the old c, of one LSTM update."""
    s_i, s_f, s_g, s_o = gates.chunk(4, dim=-1)
    i, f, g, o = s_i.sigmoid(), s_f.sigmoid(), s_g.tanh(), s_o.sigmoid()
    tanh_c = (f * c + i * g).tanh()
    d_c = d_c_new + d_h * o * (1 - tanh_c.square())
    parts = (
        d_c * g * i * (1 - i),
        d_c * c * f * (1 - f),
        d_c * i * (1 - g.square()),
        d_h * tanh_c * o * (1 - o),
    )
    return torch.cat(parts, dim=-1), d_c * f


def _gru_gradient(
    d_h: Tensor, from_input: Tensor, from_state: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both halves of the gates and, directly, of the old h, of one GRU update."""
    x_r, x_z, x_n = from_input.chunk(3, dim=-1)
    h_r, h_z, h_n = from_state.chunk(3, dim=-1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    d_z = d_h * (h - n) * z * (1 - z)
    d_n = d_h * (1 - z) * (1 - n.square())
    d_r = d_n * h_n * r * (1 - r)
    return torch.cat([d_r, d_z, d_n], -1), torch.cat([d_r, d_z, d_n * r], -1), d_h * z
