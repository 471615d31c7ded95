"""A cell over a sequence by a loop over its step: the oracle of the faster paths."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rims.jax.parameters import Parameters
from rims.jax.step import State, initial_state, project, step_keyed


class ScanOutput(NamedTuple):
    """One cell over a sequence."""

    output: Array  # (T, B, D) h after every step
    state: State  # after the last step, each (B, D)
    active: Array  # (T, B, N) bool
    input_attention: Array | None  # (T, B, N, 1 + S), where recorded
    communication: Array | None  # (T, B, M, N, N), where recorded


def loop(
    p: Parameters,
    input: Array,
    state: State,
    reset: Array | None,
    mask: Array | None,
    key: Array | None,
    record: bool,
) -> ScanOutput:
    """The loop over the step, differentiated by JAX."""
    fresh = initial_state(p, input.shape[1:2])
    keys = None if key is None else jax.random.split(key, len(input))

    def one(state: State, xs: Any) -> tuple[State, Any]:
        given, reset, mask, key = xs
        if reset is not None:
            pairs = zip(fresh, state, strict=True)
            state = tuple(jnp.where(reset[:, None], new, old) for new, old in pairs)
        did = step_keyed(p, given, state, key=key)
        new, active = did.state, did.active
        if mask is not None:
            pairs = zip(new, state, strict=True)
            new = tuple(jnp.where(mask[:, None], a, b) for a, b in pairs)
            active = active & mask[:, None]
        attentions = (did.input_attention, did.communication) if record else (None, None)
        return new, (new[0], active, *attentions)

    last, (output, active, *attentions) = lax.scan(
        one, state, (project(p, input), reset, mask, keys)
    )
    return ScanOutput(output, last, active, *attentions)
