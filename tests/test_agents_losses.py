"""The losses of PPO against hand-worked numbers, and the one that is trained with against these."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from agents.learning.losses import MEANS, LossSettings, Taken, explained_variance, ppo_loss
from ppo_oracle import (
    approximate_kl,
    clipped_policy_loss,
    entropy,
    masked_mean,
    plain_ppo_loss,
    value_loss,
)

ALL = torch.ones(2, dtype=torch.bool)


def log(*ratios: float) -> Tensor:
    return torch.tensor(ratios, dtype=torch.float64).log()


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_masked_mean_by_hand() -> None:
    mask = torch.tensor([True, False, True])
    assert masked_mean(t(1, 100, 4), mask).item() == 2.5


def test_masked_mean_of_nothing_is_zero() -> None:
    assert masked_mean(t(1, 2), ~ALL).item() == 0.0


def test_masked_mean_counts_over_all_dimensions() -> None:
    values = torch.arange(6.0).view(2, 3)
    mask = torch.tensor([[True, False, False], [True, True, False]])
    assert masked_mean(values, mask).item() == pytest.approx((0 + 3 + 4) / 3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.4),  # clipped at 1.2: no more to gain
        (0.5, 2.0, -1.0),  # not clipped: the way back stays open
        (1.5, -2.0, 3.0),  # not clipped
        (0.5, -2.0, 1.6),  # clipped at 0.8
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, expected: float) -> None:
    loss = clipped_policy_loss(log(ratio), t(advantage), torch.tensor([True]), 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "flat"),
    [(1.5, 2.0, True), (0.5, 2.0, False), (1.5, -2.0, False), (0.5, -2.0, True)],
)
def test_policy_gradient_is_zero_only_where_clipped(
    ratio: float, advantage: float, flat: bool
) -> None:
    log_ratio = log(ratio).requires_grad_()
    loss = clipped_policy_loss(log_ratio, t(advantage), torch.tensor([True]), 0.2)
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    expected = 0.0 if flat else -ratio * advantage
    assert gradient.item() == pytest.approx(expected, rel=1e-12)


def test_policy_gradient_at_ratio_one_is_the_plain_policy_gradient() -> None:
    log_ratio = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = clipped_policy_loss(log_ratio, t(3, -5), ALL, 0.2)
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    assert gradient.tolist() == [-1.5, 2.5]


def test_value_loss_by_hand() -> None:
    assert value_loss(t(1, 2), t(4, 0), ALL).item() == 0.5 * (9 + 4) / 2


def test_entropy_by_hand() -> None:
    uniform = torch.full((2, 4), 0.25, dtype=torch.float64).log()
    assert entropy(uniform, ALL).item() == pytest.approx(math.log(4), rel=1e-12)
    halves = log(0.5, 0.25, 0.25).expand(2, 3)
    assert entropy(halves, ALL).item() == pytest.approx(1.5 * math.log(2), rel=1e-12)


def test_kl_by_hand_and_never_negative() -> None:
    expected = ((2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2))) / 2
    assert approximate_kl(log(2, 0.5), ALL).item() == pytest.approx(expected, rel=1e-12)
    assert approximate_kl(log(1, 1), ALL).item() == 0.0
    one = torch.ones(1, dtype=torch.bool)
    for log_ratio in torch.linspace(-6, 6, 101, dtype=torch.float64):
        assert approximate_kl(log_ratio[None], one).item() >= 0


def test_explained_variance() -> None:
    targets = t(1, 2, 3, 6)
    mask = torch.ones(4, dtype=torch.bool)
    assert explained_variance(targets, targets, mask) == 1.0
    assert explained_variance(targets - 7, targets, mask) == 1.0  # a constant offset is no variance
    assert explained_variance(t(3, 3, 3, 3), targets, mask) == 0.0
    assert explained_variance(-targets, targets, mask) == -3.0  # residual 2 * targets
    assert explained_variance(t(1, 2, 3, 99), targets, t(1, 1, 1, 0).bool()) == 1.0


def test_explained_variance_without_variance_is_nan() -> None:
    mask = torch.ones(3, dtype=torch.bool)
    assert math.isnan(explained_variance(t(1, 2, 3), t(5, 5, 5), mask))
    assert math.isnan(explained_variance(t(1, 2, 3), t(1, 2, 3), t(0, 1, 0).bool()))


def test_explained_variance_of_nothing_is_nan() -> None:
    assert math.isnan(explained_variance(t(1, 2), t(3, 4), ~ALL))


# Masks ------------------------------------------------------------------------------------------

MASK = torch.tensor([True, False, True])

#: Every plain loss as a function of one tensor (3,), with the mask.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: masked_mean(x, MASK),
    "policy": lambda x: clipped_policy_loss(x, t(1, -2, 3), MASK, 0.2),
    "advantage": lambda x: clipped_policy_loss(t(0.1, 0.2, -0.1), x, MASK, 0.2),
    "value": lambda x: value_loss(x, t(1, 2, 3), MASK),
    "target": lambda x: value_loss(t(1, 2, 3), x, MASK),
    "entropy": lambda x: entropy(x.unsqueeze(-1).expand(3, 2), MASK),
    "kl": lambda x: approximate_kl(x, MASK),
}


@pytest.mark.parametrize("name", LOSSES)
def test_masked_entry_changes_neither_value_nor_gradient(name: str) -> None:
    results = []
    for junk in (0.3, -40.0, 40.0):
        x = t(0.1, junk, -0.2).requires_grad_()
        value = LOSSES[name](x)
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient[1].item() == 0.0
        assert bool((gradient[MASK] != 0).any())
        results.append((value.item(), gradient.tolist()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_masked_entry_that_is_not_finite_does_not_reach_the_value(name: str, junk: float) -> None:
    clean, dirty = LOSSES[name](t(0.1, 0.0, -0.2)), LOSSES[name](t(0.1, junk, -0.2))
    assert dirty.item() == clean.item()


# The loss with its gradient by hand ---------------------------------------------------------------


def random_steps(
    shape: tuple[int, ...], num_actions: int, share: float, spread: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Taken]:
    """Log-probabilities and values of a policy that has moved by ``spread`` since it acted."""
    logits = torch.randn(*shape, num_actions, dtype=dtype)
    actions = torch.randint(num_actions, shape)
    moved = (logits + spread * torch.randn_like(logits)).log_softmax(-1)
    taken = Taken(
        actions,
        logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1),
        torch.randn(shape, dtype=dtype).round(decimals=1),  # some are 0
        torch.randn(shape, dtype=dtype),
        torch.rand(shape) < share,
    )
    return moved.requires_grad_(), torch.randn(shape, dtype=dtype).requires_grad_(), taken


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("shape", "num_actions", "share", "spread"),
    [
        ((32, 16), 7, 0.97, 0.3),
        ((5, 3), 2, 0.5, 2.0),
        ((4,), 3, 1.0, 0.0),  # a ratio of 1: both sides of the minimum are the same
        ((7, 1), 3, 0.0, 0.5),  # nothing counts
        ((1, 1), 1, 1.0, 1.0),
    ],
)
@pytest.mark.parametrize("settings", [LossSettings(0.2, 0.5, 0.01), LossSettings(0.05, 2.0, 0)])
def test_loss_equals_the_plain_one_in_values_and_gradients(
    shape: tuple[int, ...],
    num_actions: int,
    share: float,
    spread: float,
    settings: LossSettings,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(len(shape) + num_actions)
    log_probs, values, taken = random_steps(shape, num_actions, share, spread, dtype)
    leaves = log_probs, values
    got = ppo_loss(*leaves, taken, settings)
    loss, means = plain_ppo_loss(*leaves, taken, settings)
    torch.testing.assert_close(got.loss, loss)
    torch.testing.assert_close(got.means, means.detach())
    assert got.loss.requires_grad
    assert not got.means.requires_grad
    scale = 0.25  # the share of a process among several
    for a, b in zip(
        torch.autograd.grad(got.loss * scale, leaves),
        torch.autograd.grad(loss * scale, leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_gradient_of_the_loss_by_finite_differences() -> None:
    torch.manual_seed(0)
    log_probs, values, taken = random_steps((4, 3), 5, 0.8, 0.4, torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: ppo_loss(a, b, taken, LossSettings(0.2, 0.5, 0.1)).loss, (log_probs, values)
    )


def test_at_the_edge_of_the_range_the_loss_is_the_plain_one() -> None:
    settings = LossSettings(0.25, 0.5, 0.0)  # 1 +- 0.25 are exact
    old = log(0.5, 0.5, 0.5, 0.5)
    log_probs = log(0.625, 0.375, 0.625, 0.375).unsqueeze(-1).requires_grad_()
    values = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    actions = torch.zeros(4, dtype=torch.int64)
    taken = Taken(actions, old, t(1, 1, -1, -1), t(0, 0, 0, 0), torch.ones(4, dtype=torch.bool))
    found = ppo_loss(log_probs, values, taken, settings)
    (got,) = torch.autograd.grad(found.loss, log_probs)
    plain, means = plain_ppo_loss(log_probs, values, taken, settings)
    (expected,) = torch.autograd.grad(plain, log_probs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(found.means, means.detach())
    assert found.means[MEANS.index("clip_fraction")] == 0


@pytest.mark.parametrize("field", ["log_probs", "advantages", "targets"])
def test_what_is_not_a_number_reaches_loss_and_gradient(field: str) -> None:
    torch.manual_seed(3)
    log_probs, values, taken = random_steps((3, 2), 4, 1.0, 0.3, torch.float64)
    leaves, broken = (log_probs, values), getattr(taken, field).clone()
    broken[1, 1] = math.nan
    found = ppo_loss(*leaves, taken._replace(**{field: broken}), LossSettings(0.2, 0.5, 0.01))
    gradients = torch.autograd.grad(found.loss, leaves)
    assert found.loss.isnan()
    assert any(bool(gradient.isnan().any()) for gradient in gradients)


@pytest.mark.parametrize("junk", [-1e3, 1e3])
def test_what_a_step_that_does_not_count_holds_changes_nothing(junk: float) -> None:
    results = []
    for fill, action in ((-0.3, 0), (junk, 2)):
        torch.manual_seed(1)
        log_probs, values, taken = random_steps((6, 4), 3, 0.5, 0.5, torch.float64)
        ignored = ~taken.valid
        taken = taken._replace(
            actions=taken.actions.masked_fill(ignored, action),
            log_probs=taken.log_probs.masked_fill(ignored, fill),
            advantages=taken.advantages.masked_fill(ignored, fill),
            targets=taken.targets.masked_fill(ignored, fill),
        )
        scores = log_probs.detach().masked_fill(ignored.unsqueeze(-1), -abs(fill))
        junked = values.detach().masked_fill(ignored, fill)
        leaves = scores.requires_grad_(), junked.requires_grad_()
        found = ppo_loss(*leaves, taken, LossSettings(0.2, 0.5, 0.01))
        gradients = torch.autograd.grad(found.loss, leaves)
        assert not any(bool(gradient[ignored].any()) for gradient in gradients)
        results.append([found.loss, found.means, found.log_ratio, *gradients])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_names_of_the_means() -> None:
    assert MEANS == ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
    taken = Taken(
        torch.tensor([0]), log(0.25), t(2), t(4), torch.ones(1, dtype=torch.bool)
    )  # ratio 2
    found = ppo_loss(log(0.5, 0.5).unsqueeze(0), t(1), taken, LossSettings(0.2, 0.5, 0.01))
    expected = [-2.4, 4.5, math.log(2), 1 - math.log(2), 1.0]
    assert found.means.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.log_ratio.tolist() == pytest.approx([math.log(2)])
