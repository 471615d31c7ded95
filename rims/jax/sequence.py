"""A cell over a sequence: the loop over the step, or what is faster and gives the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rims.jax import native, xla
from rims.jax.loop import ScanOutput as ScanOutput
from rims.jax.loop import loop
from rims.jax.parameters import Parameters
from rims.jax.step import State, initial_state

#: With fewer samples there is too little along the axis that XLA makes vectors of.
FAST_BATCH = 8


def scan(
    p: Parameters,
    input: Array,
    state: State | None = None,
    *,
    reset: Array | None = None,
    mask: Array | None = None,
    key: Array | None = None,
    record: bool = False,
    fast: bool | None = None,
) -> ScanOutput:
    r"""Run a cell over a sequence (:func:`rims.jax.step` at every step; arXiv:1909.10893).

    .. math:: h_t, c_t = \mathrm{step}(x_t, h_{t-1}, c_{t-1})

    What depends on the input alone is a matrix product over many steps, before a loop over the
    rest. The fast way also has a gradient of its own, by ``jax.custom_vjp``; it computes the same
    numbers and has no forward-mode derivatives (``jax.jvp``, ``jax.hessian``). Its loop is machine
    code where the default device is a CPU and Numba is installed, else a ``jax.lax.scan``.

    Args:
        p: parameters of the cell.
        input: ``(T, B, I)``, with slots ``(T, B, S, I)``; at least one step.
        state: ``(h, c)`` or ``(h,)``, each ``(B, D)``. Default: that of a start.
        reset: bool ``(T, B)``; where true the state starts anew before that step.
        mask: bool ``(T, B)``; where false the step is padding and the state stays as it was.
        key: random key for ``input_dropout`` and ``comm_dropout``. Default: nothing is dropped.
        record: also return both attentions of every step.
        fast: False takes the plain loop over the step, True the fast way or an error. Default: the
            fast way where it computes the options and, without machine code, the batch has at
            least 8 samples.

    Returns:
        :class:`ScanOutput`.

    Raises:
        ValueError: for shapes that do not fit, or ``fast=True`` where that cannot be.

    Example:
        >>> from rims.jax import CellSpec, init
        >>> spec = CellSpec(kind="lstm", input_size=5, hidden_size=12, num_rims=4, k=2)
        >>> p = init(jax.random.key(0), spec)
        >>> scan(p, jnp.ones((7, 3, 5))).output.shape
        (7, 3, 12)
    """
    _check_input(p, input)
    if state is None:
        state = initial_state(p, input.shape[1:2])
    _check_state(p, input, state)
    for name, flag in (("reset", reset), ("mask", mask)):
        if flag is not None and (flag.shape != input.shape[:2] or flag.dtype != bool):
            raise ValueError(
                f"scan: {name} must be bool of shape {input.shape[:2]}; "
                f"got {flag.dtype} of shape {flag.shape}."
            )
    obstacle = _why_not(p, key, record)
    if fast and obstacle:
        raise ValueError(f"scan: fast=True cannot compute this: {obstacle}.")
    p, input, state = _one_type(p, input, state)
    way = None if obstacle or fast is False else _fast_way(input, insist=bool(fast))
    if way is not None:
        output, last, active = way(p, input, state, reset, mask)
        return ScanOutput(output, last, active, None, None)
    return loop(p, input, state, reset, mask, key, record)


def scan_reversed(
    p: Parameters,
    input: Array,
    state: State | None = None,
    *,
    reset: Array | None = None,
    mask: Array | None = None,
    **options: Any,
) -> ScanOutput:
    """As :func:`scan`, from the last step to the first; results are in order of time."""
    if reset is not None:
        # A reset before step t parts the sequence there: from this side, after step t.
        reset = jnp.concatenate([jnp.zeros_like(reset[:1]), reset[1:][::-1]])
    did = scan(p, flip_time(input, mask), state, reset=reset, mask=mask, **options)
    output, active = flip_time(did.output, mask), flip_time(did.active, mask)
    reads = None if did.input_attention is None else flip_time(did.input_attention, mask)
    comm = None if did.communication is None else flip_time(did.communication, mask)
    return ScanOutput(output, did.state, active, reads, comm)


def flip_time(sequence: Array, mask: Array | None) -> Array:
    """Reverse (T, B, ...) in time, each row within its own valid steps; padding stays in place."""
    if mask is None:
        return sequence[::-1]
    steps = jnp.arange(len(sequence))[:, None]
    index = jnp.where(mask, mask.sum(0) - 1 - steps, steps)  # (T, B)
    index = index.reshape(*index.shape, *(1,) * (sequence.ndim - 2))
    return jnp.take_along_axis(sequence, index, axis=0)


def _fast_way(input: Array, *, insist: bool) -> Callable[..., Any] | None:
    """Function that computes a sequence (T, B, I) fast; None if the plain loop may be as fast."""
    batch = input.shape[1]
    if not batch:  # there is nothing to compute
        return None
    if native.is_available(input.dtype == jnp.float64):
        from rims.jax.native.sequence import run

        return run
    return xla.run if insist or batch >= FAST_BATCH else None


def _why_not(p: Parameters, key: Array | None, record: bool) -> str | None:
    """Why only the plain loop can compute this; None if a fast path can."""
    if record:
        return "recording attentions"
    if key is not None and p.spec.has_dropout:
        return "dropout inside the cell"
    for name, plain in (("input_slots", False), ("num_input_heads", 1), ("proj_size", 0)):
        if getattr(p.spec, name) != plain:
            return name
    return None


def _one_type(p: Parameters, input: Array, state: State) -> tuple[Parameters, Array, State]:
    """Everything in the common type: a loop cannot change types."""
    dtype = jnp.result_type(input, *state, *p.arrays().values())
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"scan: parameters, input and state must be real floats; got {dtype}.")
    changed: tuple[Parameters, Array, State] = jax.tree.map(
        lambda a: a.astype(dtype), (p, input, state)
    )
    return changed


def _check_input(p: Parameters, input: Array) -> None:
    slots = 1 if p.spec.input_slots else 0
    if input.ndim != 3 + slots or input.shape[-1] != p.spec.input_size or not len(input):
        form = "(T, B, S, I)" if slots else "(T, B, I)"
        raise ValueError(
            f"scan: input must be {form} with I={p.spec.input_size} and at least one step; "
            f"got shape {input.shape}."
        )


def _check_state(p: Parameters, input: Array, state: State) -> None:
    expected = [(input.shape[1], size) for size in p.spec.state_sizes]
    if not isinstance(state, tuple) or [s.shape for s in state] != expected:
        got = [s.shape for s in state] if isinstance(state, tuple) else type(state).__name__
        raise ValueError(f"scan: state must be a tuple of shapes {expected}; got {got}.")
