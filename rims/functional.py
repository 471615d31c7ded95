"""Pure functions shared by RIM cells and Neural Function Modules: selection, attention, gates.

Nothing here owns a parameter or knows about time. Shapes use the letters of ``docs/notation.md``:
B batch, N mechanisms, S sources of an attention, M heads.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

#: How an attention is made sparse, see :func:`attention_weights`.
TopKRule = Literal["softmax", "threshold"]

_THRESHOLD_EPS = 1e-7


class AttentionOutput(NamedTuple):
    """What an attention read, and how much weight each source had."""

    read: Tensor  # (..., R, dv)
    weights: Tensor  # (..., R, S)


def topk_mask(scores: Tensor, k: int, *, dim: int = -1) -> Tensor:
    r"""Mark the ``k`` largest entries along ``dim``; among equal entries the lowest index wins.

    ``torch.topk`` cuts a tie in an order that depends on size and device, and comparing with a
    threshold keeps every tied entry. A recurrent state of zeros ties *all* mechanisms of a RIM
    layer (arXiv:1909.10893), so the rule has to be exact: here always exactly ``k`` are marked.

    Args:
        scores: any real tensor; no gradient passes through the selection. NaN counts as largest.
        k: how many to mark, ``1 <= k <= scores.shape[dim]``.
        dim: the axis to select along. Default: the last.

    Returns:
        Bool tensor shaped like ``scores`` with exactly ``k`` true entries along ``dim``.

    Raises:
        ValueError: if ``k`` is outside its range.

    Example:
        >>> topk_mask(torch.tensor([0.0, 2.0, 0.0, 0.0]), 2).tolist()
        [True, True, False, False]
    """
    _check_k("topk_mask", scores, k, dim)
    # An export either compiles or traces. Asking torch.onnx alone would import all of it.
    is_graph = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if is_graph and torch.onnx.is_in_onnx_export():
        # ONNX knows no stable sort, but its TopK cuts ties by the lowest index.
        chosen = scores.detach().topk(k, dim=dim).indices
    else:
        order = scores.detach().argsort(dim=dim, descending=True, stable=True)
        chosen = order.narrow(dim, 0, k)
    # A number rather than True is scattered because torch.jit.trace cannot scatter a bool.
    return torch.zeros_like(scores, dtype=torch.uint8).scatter(dim, chosen, 1).bool()


def topk_softmax(scores: Tensor, k: int, *, dim: int = -1) -> Tensor:
    r"""Softmax over the ``k`` largest scores along ``dim``; every other weight is exactly zero.

    .. math:: a_i = \frac{[i \in \mathcal{T}_k]\, e^{s_i}}{\sum_{j \in \mathcal{T}_k} e^{s_j}}

    with :math:`\mathcal{T}_k` the indices of the ``k`` largest scores (the sparse attention of
    arXiv:2010.08012, section 3). The ratio of two kept weights is that of the dense softmax.

    Differs from the authors' code, which subtracts the (k+1)-th weight from a dense softmax, clamps
    at zero and renormalises: a weight just above the threshold almost vanishes there.

    Args:
        scores: unnormalised scores; ``-inf`` marks a source that must not be read.
        k: number of sources kept, ``1 <= k <= scores.shape[dim]``. Equal: the ordinary softmax.
        dim: the axis of sources. Default: the last.

    Returns:
        Weights shaped like ``scores``, summing to one along ``dim`` (NaN where all are ``-inf``).

    Raises:
        ValueError: if ``k`` is outside its range.

    Example:
        >>> topk_softmax(torch.tensor([1.0, 1.0, -3.0]), 2).tolist()
        [0.5, 0.5, 0.0]
    """
    _check_k("topk_softmax", scores, k, dim)
    if k == scores.shape[dim]:
        return scores.softmax(dim)
    return scores.masked_fill(~topk_mask(scores, k, dim=dim), -math.inf).softmax(dim)


def threshold_softmax(scores: Tensor, k: int, *, dim: int = -1) -> Tensor:
    r"""Softmax cut at its (k+1)-th largest weight: what exceeds it is kept and renormalised.

    .. math:: p = \mathrm{softmax}(s), \qquad r_i = \max(p_i - p_{(k+1)} - \epsilon, 0), \qquad
              a_i = r_i / (\textstyle\sum_j r_j + \epsilon), \qquad \epsilon = 10^{-7}

    The sparse attention of the authors' code for arXiv:2010.08012 and of Ke et al.
    (arXiv:1809.03702). Where two weights are nearly the (k+1)-th, fewer than ``k`` are left in all
    but name: compare :func:`topk_softmax`. The gradient flows through the threshold too.

    Args:
        scores: unnormalised scores.
        k: weights kept, at least 1. With ``k + 1`` sources or fewer: the ordinary softmax.
        dim: the axis of sources. Default: the last.

    Returns:
        Weights shaped like ``scores``, at most ``k`` along ``dim`` above zero if cut.

    Raises:
        ValueError: if ``k`` is less than 1.

    Example:
        >>> threshold_softmax(torch.tensor([0.0, 0.0]), 1).tolist()
        [0.5, 0.5]
        >>> threshold_softmax(torch.tensor([2.0, 1.0, 0.0]), 1).round(decimals=3).tolist()
        [1.0, 0.0, 0.0]
    """
    if k < 1:
        raise ValueError(f"threshold_softmax: k must be at least 1; got k={k}.")
    weights = scores.softmax(dim)
    if scores.shape[dim] <= k + 1:
        return weights
    threshold = weights.topk(k + 1, dim=dim).values.narrow(dim, k, 1) + _THRESHOLD_EPS
    rest = (weights - threshold).clamp(min=0)
    return rest / (rest.sum(dim, keepdim=True) + _THRESHOLD_EPS)


def threshold_softmax_gradient(grad: Tensor, scores: Tensor, k: int) -> Tensor:
    r"""Gradient of :func:`threshold_softmax` along the last axis, without autograd.

    .. math:: \bar r_i = [p_i \ge p_{(k+1)} + \epsilon]\;
              (\bar a_i - \textstyle\sum_j a_j \bar a_j) / (\sum_j r_j + \epsilon), \qquad
              \bar p_i = \bar r_i - [i = (k+1)] \textstyle\sum_j \bar r_j, \qquad
              \bar s_i = p_i\, (\bar p_i - \textstyle\sum_j p_j \bar p_j)

    Args:
        grad: gradient of the weights, ``(..., S)``.
        scores: as given to :func:`threshold_softmax`, ``(..., S)``.
        k: weights kept.

    Returns:
        Gradient of ``scores``.

    Example:
        >>> threshold_softmax_gradient(torch.tensor([1.0, 0.0]), torch.zeros(2), 1).tolist()
        [0.25, -0.25]
    """
    weights = scores.softmax(-1)
    if scores.shape[-1] > k + 1:
        top = weights.topk(k + 1)
        over = weights - (top.values[..., k:] + _THRESHOLD_EPS)
        rest = over.clamp(min=0)
        total = rest.sum(-1, keepdim=True) + _THRESHOLD_EPS
        grad = (grad - (grad * rest / total).sum(-1, keepdim=True)) / total
        grad = torch.where(over >= 0, grad, 0.0)
        grad = grad.scatter_add(-1, top.indices[..., k:], -grad.sum(-1, keepdim=True))
    return weights * (grad - (weights * grad).sum(-1, keepdim=True))


def attention_weights(
    scores: Tensor, k: int | None = None, *, rule: TopKRule = "softmax", dim: int = -1
) -> Tensor:
    """Weights of an attention from its scores, at most ``k`` of them above zero.

    Args:
        scores: unnormalised scores.
        k: sources kept; ``None`` (default) keeps all.
        rule: ``"softmax"`` (default) is :func:`topk_softmax`, ``"threshold"`` is
            :func:`threshold_softmax`.
        dim: the axis of sources. Default: the last.

    Returns:
        Weights shaped like ``scores``.

    Raises:
        ValueError: if ``k`` is outside the range of the rule.

    Example:
        >>> attention_weights(torch.tensor([1.0, 1.0, -3.0]), 2).tolist()
        [0.5, 0.5, 0.0]
    """
    if k is None:
        return scores.softmax(dim)
    if rule == "threshold":
        return threshold_softmax(scores, k, dim=dim)
    return topk_softmax(scores, k, dim=dim)


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    k: int | None = None,
    rule: TopKRule = "softmax",
) -> AttentionOutput:
    r"""Scaled dot-product attention in which each reader sees at most ``k`` sources.

    .. math:: \mathrm{read} = \mathrm{topk\,softmax}(Q K^\top / \sqrt{d_k})\, V

    Args:
        query: ``(..., R, dk)``, one row per reader.
        key: ``(..., S, dk)``, one row per source.
        value: ``(..., S, dv)``.
        k: sources kept per reader; ``None`` (default) keeps all of them.
        rule: how they are kept, see :func:`attention_weights`. Default ``"softmax"``.

    Returns:
        ``AttentionOutput(read (..., R, dv), weights (..., R, S))``.

    Raises:
        ValueError: if ``k`` is outside the range of the rule, ``[1, S]`` by default.

    Example:
        >>> out = sparse_attention(torch.ones(2, 4), torch.ones(3, 4), torch.ones(3, 5))
        >>> out.read.shape, out.weights.shape
        (torch.Size([2, 5]), torch.Size([2, 3]))
    """
    # Scaling the query, not the product: fewer operations, and torch's CPU inductor fails to
    # compile softmax(Q K^T / s) V with gradients on 4-D tensors.
    scores = (query / math.sqrt(query.shape[-1])) @ key.mT  # (..., R, S)
    weights = attention_weights(scores, k, rule=rule)
    return AttentionOutput(weights @ value, weights)


def grouped_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Apply to each of N groups its own linear map: :math:`y_m = x_m W_m + b_m`.

    Args:
        input: ``(..., N, in)``.
        weight: ``(N, in, out)``.
        bias: ``(N, out)`` or ``None``.

    Returns:
        ``(..., N, out)``.

    Example:
        >>> grouped_linear(torch.ones(5, 3, 2), torch.ones(3, 2, 4)).shape
        torch.Size([5, 3, 4])
    """
    output = torch.einsum("...ni,nio->...no", input, weight)
    return output if bias is None else output + bias


def stop_gradient_where(input: Tensor, condition: Tensor) -> Tensor:
    """The same values as ``input``; no gradient passes back where ``condition`` is true.

    Args:
        input: any tensor.
        condition: bool tensor broadcastable to ``input``.

    Returns:
        Tensor shaped like ``input``.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> stop_gradient_where(x, torch.tensor([True, False])).sum().backward()
        >>> x.grad.tolist()
        [0.0, 1.0]
    """
    return torch.where(condition, input.detach(), input)


def lstm_candidate(gates: Tensor, c_prev: Tensor) -> tuple[Tensor, Tensor]:
    r"""One LSTM update from its gate pre-activations, gate order i, f, g, o (as ``nn.LSTMCell``).

    .. math:: c = \sigma(s_f) c_{prev} + \sigma(s_i) \tanh(s_g), \qquad h = \sigma(s_o) \tanh(c)

    Args:
        gates: ``(..., 4 d)``, the four pre-activations side by side.
        c_prev: ``(..., d)``.

    Returns:
        ``(h, c)``, each ``(..., d)``.
    """
    s_i, s_f, s_g, s_o = gates.chunk(4, dim=-1)
    c = s_f.sigmoid() * c_prev + s_i.sigmoid() * s_g.tanh()
    return s_o.sigmoid() * c.tanh(), c


def gru_candidate(input_gates: Tensor, hidden_gates: Tensor, h_prev: Tensor) -> Tensor:
    r"""One GRU update from its two halves of the gates, gate order r, z, n (as ``nn.GRUCell``).

    .. math:: n = \tanh(s^x_n + \sigma(s^x_r + s^h_r)\, s^h_n), \qquad
              h = (1 - z)\, n + z\, h_{prev}, \quad z = \sigma(s^x_z + s^h_z)

    Args:
        input_gates: ``(..., 3 d)``, what comes from the input, bias included.
        hidden_gates: ``(..., 3 d)``, what comes from the state, bias included.
        h_prev: ``(..., d)``.

    Returns:
        ``(..., d)``.
    """
    x_r, x_z, x_n = input_gates.chunk(3, dim=-1)
    h_r, h_z, h_n = hidden_gates.chunk(3, dim=-1)
    z = (x_z + h_z).sigmoid()
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return (1 - z) * n + z * h_prev


def null_softmax(scores: Tensor) -> Tensor:
    r"""Softmax over a null source of score 0 and the given ones.

    .. math:: p = \mathrm{softmax}(0, s_1, \dots, s_S)

    Args:
        scores: ``(..., S)``.

    Returns:
        ``(..., 1 + S)``: index 0 is the null source.

    Example:
        >>> null_softmax(torch.zeros(1)).tolist()
        [0.5, 0.5]
    """
    return F.pad(scores, (1, 0)).softmax(-1)


def _check_k(where: str, scores: Tensor, k: int, dim: int) -> None:
    size = scores.shape[dim]
    if not 1 <= k <= size:
        raise ValueError(
            f"{where}: k must lie in [1, {size}], the size of dim {dim} of scores; got k={k}."
        )
