"""The pure functions: exact selection, attention with hand-worked values, gates as in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from rims.functional import (
    attention_weights,
    grouped_linear,
    gru_candidate,
    lstm_candidate,
    null_softmax,
    sparse_attention,
    stop_gradient_where,
    threshold_softmax,
    topk_mask,
    topk_softmax,
)

PROPERTY = settings(max_examples=50, deadline=None, derandomize=True)

#: Few distinct values, so that almost every list holds ties; -0.0 equals 0.0.
TIED = st.lists(st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 2.0]), min_size=1, max_size=11)

#: Several roundings of numbers of order one in double precision, and nothing else.
assert_near = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def lowest_of_the_largest(scores: list[float], k: int) -> list[bool]:
    ranking = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [i in ranking[:k] for i in range(len(scores))]


# --- topk_mask


@PROPERTY
@given(scores=TIED, data=st.data())
def test_topk_mask_marks_k_lowest_index_first(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    mask = topk_mask(torch.tensor(scores), k)
    assert mask.tolist() == lowest_of_the_largest(scores, k)


@pytest.mark.parametrize("size", [2, 17, 1009])
def test_topk_mask_all_equal_marks_the_first(size: int) -> None:
    # long rows take another sorting routine than short ones
    k = size // 2
    mask = topk_mask(torch.zeros(3, size), k)
    assert torch.equal(mask, (torch.arange(size) < k).expand(3, size))


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_topk_mask_along_any_dim(dim: int) -> None:
    scores = torch.randint(0, 3, (3, 5, 7))
    mask = topk_mask(scores, 2, dim=dim)
    rows = scores.movedim(dim, -1).reshape(-1, scores.shape[dim])
    marked = mask.movedim(dim, -1).reshape(-1, scores.shape[dim])
    for row, got in zip(rows.tolist(), marked.tolist(), strict=True):
        assert got == lowest_of_the_largest(row, 2)


def test_topk_mask_nan_counts_as_largest() -> None:
    scores = torch.tensor([1.0, math.nan, math.inf, math.nan])
    assert topk_mask(scores, 1).tolist() == [False, True, False, False]
    assert topk_mask(scores, 2).tolist() == [False, True, False, True]
    assert topk_mask(scores, 3).tolist() == [False, True, True, True]


def test_topk_mask_is_bool_without_gradient() -> None:
    mask = topk_mask(double(3, 5).requires_grad_(), 2)
    assert mask.dtype == torch.bool
    assert not mask.requires_grad


def test_topk_mask_of_an_empty_batch() -> None:
    assert topk_mask(torch.zeros(0, 5), 2).shape == (0, 5)


@pytest.mark.parametrize("select", [topk_mask, topk_softmax])
@pytest.mark.parametrize("k", [-1, 0, 4])
def test_topk_k_out_of_range_names_the_range(select: Callable[..., Tensor], k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must lie in \[1, 3\], .*dim 1 .*got k={k}\.$"):
        select(torch.zeros(5, 3, 7), k, dim=1)


# --- topk_softmax


def test_topk_softmax_by_hand() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log()
    expected = torch.tensor([0.0, 0.0, 3 / 7, 4 / 7], dtype=torch.float64)
    assert_near(topk_softmax(scores, 2), expected)


def test_topk_softmax_with_all_kept_is_softmax() -> None:
    scores = double(3, 7).requires_grad_()
    weights, dense = topk_softmax(scores, 7), scores.softmax(-1)
    cotangent = double(3, 7)
    assert torch.equal(weights, dense)
    (got,) = torch.autograd.grad(weights, scores, cotangent)
    (expected,) = torch.autograd.grad(dense, scores, cotangent)
    assert torch.equal(got, expected)


@PROPERTY
@given(size=st.integers(2, 11), data=st.data(), seed=st.integers(0, 999))
def test_topk_softmax_is_softmax_of_the_kept(size: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, size - 1))
    scores = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores.requires_grad_()
    weights = topk_softmax(scores, k)
    kept = topk_mask(scores, k)
    alone = scores[kept].softmax(0)
    assert_near(weights[kept], alone)
    assert torch.equal(weights[~kept], torch.zeros(size - k, dtype=torch.float64))
    cotangent = torch.arange(1.0, size + 1, dtype=torch.float64) ** 2
    (gradient,) = torch.autograd.grad(weights, scores, cotangent)
    (expected,) = torch.autograd.grad(alone, scores, cotangent[kept])
    assert_near(gradient, expected, rtol=1e-9, atol=1e-11)
    assert gradient[~kept].count_nonzero() == 0
    assert k == 1 or gradient[kept].count_nonzero() == k


def test_topk_softmax_keeps_the_ratios_of_softmax() -> None:
    scores = double(3, 7)
    weights, dense = topk_softmax(scores, 3), scores.softmax(-1)
    for row, full in zip(weights, dense, strict=True):
        kept = row.nonzero().flatten()
        assert_near(row[kept] / row[kept[0]], full[kept] / full[kept[0]])


@PROPERTY
@given(scores=TIED.filter(lambda s: max(s) > -math.inf), data=st.data())
def test_topk_softmax_ties_are_cut_to_k(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    weights = topk_softmax(torch.tensor(scores, dtype=torch.float64), k)
    marked = lowest_of_the_largest(scores, k)
    readable = [m and s > -math.inf for m, s in zip(marked, scores, strict=True)]
    assert (weights > 0).tolist() == readable
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)


def test_topk_softmax_nothing_to_read_is_nan() -> None:
    assert topk_softmax(torch.full((5,), -math.inf), 2).isnan().all()


def test_topk_softmax_along_another_dim() -> None:
    scores = double(5, 3, 7)
    expected = topk_softmax(scores.movedim(1, -1), 2).movedim(-1, 1)
    assert_near(topk_softmax(scores, 2, dim=1), expected)


# --- threshold_softmax


def test_threshold_softmax_by_hand() -> None:
    # powers 1, 2, 4, 1: weights in eighths; the third largest is 1/8, what exceeds it 1/8 and 3/8
    scores = torch.tensor([0.0, math.log(2), 2 * math.log(2), 0.0], dtype=torch.float64)
    eps = 1e-7
    rest = torch.tensor([0.0, 1 / 8 - eps, 3 / 8 - eps, 0.0], dtype=torch.float64)
    assert_near(threshold_softmax(scores, 2), rest / (rest.sum() + eps))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_threshold_softmax_keeps_at_most_k_and_only_if_there_are_more(k: int) -> None:
    for size in range(1, 8):
        scores = double(50, size)
        weights = threshold_softmax(scores, k)
        if size <= k + 1:
            assert torch.equal(weights, scores.softmax(-1))
        else:
            assert ((weights > 0).sum(-1) <= k).all()
            assert_near(weights.sum(-1), torch.ones(50).double(), atol=1e-2)
            assert (weights.argmax(-1) == scores.argmax(-1)).all()


def test_threshold_softmax_differs_from_softmax_over_the_largest() -> None:
    # Of two that lie just above the threshold nothing is left.
    scores = torch.tensor([3.0, 0.001, 0.0], dtype=torch.float64)
    assert threshold_softmax(scores, 1)[0] > 0.999
    close = torch.tensor([3.0, 0.002, 0.001, 0.0], dtype=torch.float64)
    assert threshold_softmax(close, 2)[1] < 1e-4
    assert topk_softmax(close, 2)[1] > 0.04


def test_threshold_softmax_gradient_flows_through_the_threshold() -> None:
    scores = double(3, 6).requires_grad_()
    assert gradcheck(lambda s: threshold_softmax(s, 2), (scores,))
    largest = threshold_softmax(scores, 2).max(-1).values
    (gradient,) = torch.autograd.grad(largest.sum(), scores)
    third = scores.detach().argsort(-1, descending=True)[:, 2:3]
    assert (gradient.gather(-1, third).abs() > 1e-3).all()  # itself it has weight 0


def test_threshold_softmax_along_another_dim() -> None:
    scores = double(5, 6, 4)
    expected = threshold_softmax(scores.movedim(1, -1), 2).movedim(-1, 1)
    assert_near(threshold_softmax(scores, 2, dim=1), expected)


def test_threshold_softmax_needs_a_positive_k() -> None:
    with pytest.raises(ValueError, match=r"^threshold_softmax: k must be at least 1; got k=0"):
        threshold_softmax(double(3), 0)


def test_attention_weights_chooses_the_rule() -> None:
    scores = double(4, 6)
    assert torch.equal(attention_weights(scores), scores.softmax(-1))
    assert torch.equal(attention_weights(scores, 2), topk_softmax(scores, 2))
    expected = threshold_softmax(scores, 2, dim=0)
    assert torch.equal(attention_weights(scores, 2, rule="threshold", dim=0), expected)


# --- attention


def test_sparse_attention_by_hand() -> None:
    # scores (2 ln 2, 0, 0, 0) . (0 | 1 | 2, ...) / sqrt(4) = 0, ln 2, 2 ln 2: powers 1, 2, 4
    query = torch.tensor([[2 * math.log(2), 0.0, 0.0, 0.0]], dtype=torch.float64)
    key = torch.zeros(3, 4, dtype=torch.float64)
    key[:, 0] = torch.arange(3.0)
    value = torch.tensor([[7.0, 0.0], [14.0, 1.0], [21.0, 0.0]], dtype=torch.float64)
    dense = sparse_attention(query, key, value)
    assert_near(dense.weights, torch.tensor([[1.0, 2, 4]]).double() / 7)
    assert_near(dense.read, torch.tensor([[119.0, 2]]).double() / 7)
    sparse = sparse_attention(query, key, value, k=2)
    assert_near(sparse.weights, torch.tensor([[0.0, 2, 4]]).double() / 6)
    assert_near(sparse.read, torch.tensor([[112 / 6, 2 / 6]], dtype=torch.float64))


@pytest.mark.parametrize("k", [None, 7])
def test_sparse_attention_with_all_kept_is_attention(k: int | None) -> None:
    query, key, value = double(2, 3, 5, 11), double(2, 3, 7, 11), double(2, 3, 7, 13)
    out = sparse_attention(query, key, value, k=k)
    expected = F.scaled_dot_product_attention(query, key, value)
    assert out.weights.shape == (2, 3, 5, 7)
    assert_near(out.read, expected)


def test_sparse_attention_reads_only_the_kept() -> None:
    query, key, value = double(5, 3), double(7, 3), double(7, 2)
    out = sparse_attention(query, key, value, k=2)
    assert (out.weights > 0).sum(-1).tolist() == [2] * 5
    spoiled = value.clone()
    unread = out.weights[0] == 0
    spoiled[unread] = 1e9
    again = sparse_attention(query, key, spoiled, k=2)
    assert torch.equal(again.read[0], out.read[0])


def test_sparse_attention_k_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"k must lie in \[1, 7\].*got k=8"):
        sparse_attention(double(5, 3), double(7, 3), double(7, 2), k=8)


def test_null_softmax_by_hand() -> None:
    # p(input) of score ln 3 is 3 / (1 + 3)
    score = torch.tensor([[math.log(3), 0.0, -math.log(3), 800.0, -800.0]], dtype=torch.float64)
    expected = torch.tensor([[[1, 3], [2, 2], [3, 1], [0, 4], [4, 0]]]).double() / 4
    assert_near(null_softmax(score.unsqueeze(-1)), expected)


# --- grouped_linear


@pytest.mark.parametrize("lead", [(), (5,), (5, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_grouped_linear_equals_a_loop(lead: tuple[int, ...], bias: bool) -> None:
    input, weight = double(*lead, 3, 7), double(3, 7, 11)
    shift = double(3, 11) if bias else None
    groups = [input[..., m, :] @ weight[m] + (0 if shift is None else shift[m]) for m in range(3)]
    assert_near(grouped_linear(input, weight, shift), torch.stack(groups, dim=-2))


def test_grouped_linear_of_an_empty_batch() -> None:
    assert grouped_linear(double(0, 3, 7), double(3, 7, 11), double(3, 11)).shape == (0, 3, 11)


def test_grouped_linear_groups_do_not_mix() -> None:
    input, weight = double(5, 3, 7), double(3, 7, 11)
    before = grouped_linear(input, weight)
    input[:, 1] = math.nan
    after = grouped_linear(input, weight)
    assert after[:, 1].isnan().all()
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])


# --- stop_gradient_where


def test_stop_gradient_where_keeps_values_and_cuts_gradients() -> None:
    input = double(5, 3, 7).requires_grad_()
    condition = torch.rand(5, 3, 1) < 0.5  # broadcast over the last axis
    output = stop_gradient_where(input, condition)
    assert torch.equal(output, input)
    cotangent = double(5, 3, 7)
    (gradient,) = torch.autograd.grad(output, input, cotangent)
    assert condition.any()
    assert not condition.all()
    assert torch.equal(gradient, cotangent.masked_fill(condition, 0.0))


def test_stop_gradient_where_stops_nan_too() -> None:
    input = double(3).requires_grad_()
    output = stop_gradient_where(input, torch.tensor([True, False, True]))
    (gradient,) = torch.autograd.grad(
        output, input, torch.tensor([math.nan, 2.0, math.inf]).double()
    )
    assert gradient.tolist() == [0.0, 2.0, 0.0]


# --- candidates


def test_lstm_candidate_equals_torch() -> None:
    cell = nn.LSTMCell(7, 5, dtype=torch.float64)
    x, h, c = double(3, 7), double(3, 5), double(3, 5)
    gates = F.linear(x, cell.weight_ih, cell.bias_ih) + F.linear(h, cell.weight_hh, cell.bias_hh)
    for got, expected in zip(lstm_candidate(gates, c), cell(x, (h, c)), strict=True):
        assert_near(got, expected)


def test_gru_candidate_equals_torch() -> None:
    cell = nn.GRUCell(7, 5, dtype=torch.float64)
    x, h = double(3, 7), double(3, 5)
    from_input = F.linear(x, cell.weight_ih, cell.bias_ih)
    from_state = F.linear(h, cell.weight_hh, cell.bias_hh)
    got = gru_candidate(from_input, from_state, h)
    assert_near(got, cell(x, h))


# --- numerical gradients

GRADIENTS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "topk_softmax": (lambda s: topk_softmax(s, 2), [(3, 5)]),
    "sparse_attention": (
        lambda q, k, v: tuple(sparse_attention(q, k, v, k=2)),
        [(3, 2), (5, 2), (5, 7)],
    ),
    "null_softmax": (null_softmax, [(2, 3)]),
    "grouped_linear": (grouped_linear, [(2, 3, 5), (3, 5, 7), (3, 7)]),
    "lstm_candidate": (lstm_candidate, [(2, 12), (2, 3)]),
    "gru_candidate": (gru_candidate, [(2, 9), (2, 9), (2, 3)]),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_is_numerically_right(name: str) -> None:
    function, shapes = GRADIENTS[name]
    assert gradcheck(function, [double(*shape).requires_grad_() for shape in shapes])
