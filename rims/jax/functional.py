"""Pure functions of a RIM step: selection, attention, gates. The JAX side of rims.functional."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax


def topk_mask(scores: Array, k: int, *, axis: int = -1) -> Array:
    """Mark the ``k`` largest entries along ``axis``; among equal entries the lowest index wins.

    As :func:`rims.functional.topk_mask`, by counting for every entry those that come before it: for
    the few mechanisms there are (arXiv:1909.10893) that is less work than sorting, and it is exact.

    Args:
        scores: any real array. NaN counts as largest; no gradient passes.
        k: how many to mark, ``1 <= k <= scores.shape[axis]``.
        axis: the axis to select along. Default: the last.

    Returns:
        Bool array shaped like ``scores`` with exactly ``k`` true entries along ``axis``.

    Raises:
        ValueError: if ``k`` is outside its range.

    Example:
        >>> topk_mask(jnp.array([0.0, 2.0, 0.0, 0.0]), 2).tolist()
        [True, True, False, False]
    """
    size = scores.shape[axis]
    if not 1 <= k <= size:
        raise ValueError(
            f"topk_mask: k must lie in [1, {size}], the size of axis {axis} of scores; got k={k}."
        )
    moved = jnp.moveaxis(lax.stop_gradient(scores), axis, 0)
    mine, other = moved[:, None], moved[None, :]
    index = jnp.arange(size).reshape(size, *(1,) * (moved.ndim - 1))
    lower = index[None, :] < index[:, None]
    is_nan, other_is_nan = jnp.isnan(mine), jnp.isnan(other)
    tied = (mine == other) | (is_nan & other_is_nan)
    ahead = (other > mine) | (other_is_nan & ~is_nan) | (tied & lower)
    return jnp.moveaxis(ahead.sum(1) < k, 0, axis)


def grouped_linear(input: Array, weight: Array, bias: Array | None = None) -> Array:
    """Apply to each of N groups its linear map: ``(..., N, in), (N, in, out) -> (..., N, out)``.

    Example:
        >>> grouped_linear(jnp.ones((5, 3, 2)), jnp.ones((3, 2, 4))).shape
        (5, 3, 4)
    """
    output = jnp.einsum("...ni,nio->...no", input, weight)
    return output if bias is None else output + bias


def stop_gradient_where(input: Array, condition: Array) -> Array:
    """The same values as ``input``; no gradient passes back where ``condition`` is true.

    Example:
        >>> grad = jax.grad(lambda x: stop_gradient_where(x, jnp.array([True, False])).sum())
        >>> grad(jnp.ones(2)).tolist()
        [0.0, 1.0]
    """
    return jnp.where(condition, lax.stop_gradient(input), input)


def lstm_candidate(gates: Array, c_prev: Array) -> tuple[Array, Array]:
    """One LSTM update, ``(h, c)``, from pre-activations (..., 4 d), gate order i, f, g, o."""
    s_i, s_f, s_g, s_o = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(s_f) * c_prev + jax.nn.sigmoid(s_i) * jnp.tanh(s_g)
    return jax.nn.sigmoid(s_o) * jnp.tanh(c), c


def gru_candidate(input_gates: Array, hidden_gates: Array, h_prev: Array) -> Array:
    """One GRU update from both halves of its pre-activations (..., 3 d), gate order r, z, n."""
    x_r, x_z, x_n = jnp.split(input_gates, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(hidden_gates, 3, axis=-1)
    z = jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
    return (1 - z) * n + z * h_prev


def dropout(input: Array, rate: float, key: Array | None) -> Array:
    """Zero entries with probability ``rate`` and scale the others up; without a key nothing."""
    if key is None or rate == 0:
        return input
    if rate == 1:
        return jnp.zeros_like(input)
    kept = jax.random.bernoulli(key, 1 - rate, input.shape)
    return jnp.where(kept, input / (1 - rate), 0)


def split_heads(joined: Array, num_heads: int) -> Array:
    """(..., rows, M width) -> (..., M, rows, width), heads outermost in the last axis."""
    split = joined.reshape(*joined.shape[:-1], num_heads, joined.shape[-1] // num_heads)
    return jnp.swapaxes(split, -2, -3)


def join_heads(split: Array) -> Array:
    """(..., M, rows, width) -> (..., rows, M width)."""
    return join_last(jnp.swapaxes(split, -2, -3))


def join_last(split: Array) -> Array:
    """(..., X, Y) -> (..., X Y); an empty batch leaves nothing for a size of -1 to follow from."""
    *batch, rows, width = split.shape
    return split.reshape(*batch, rows * width)
