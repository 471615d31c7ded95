"""A whole sequence by the kernels, and how JAX differentiates it.

Where the program turns out to run on another device, :mod:`rims.jax.xla` computes the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from rims.jax import xla
from rims.jax.loop import loop
from rims.jax.native import fault
from rims.jax.native.backward import backward
from rims.jax.native.forward import Did, Given, Result, forward, forward_kept
from rims.jax.parameters import Parameters
from rims.jax.step import State


def run(
    p: Parameters, input: Array, state: State, reset: Array | None, valid: Array | None
) -> tuple[Array, State, Array]:
    """The outputs (T, B, D), the last state and which were active (T, B, N).

    Of types shorter than float32 it is computed in that.
    """
    dtype = input.dtype
    computed = jnp.promote_types(dtype, jnp.float32)
    p, input, state = jax.tree.map(lambda a: a.astype(computed), (p, input, state))
    steps, batch, _ = input.shape
    length = math.ceil(steps / max(1, round(steps * batch / xla.CHUNK_ROWS)))
    did = _sequence(length, Given(p, input, state, reset, valid))
    output, rest = jax.tree.map(lambda a: a.astype(dtype), (did.output, did.rest))
    return output, (output[-1], *rest), did.active


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sequence(length: int, given: Given) -> Result:
    """The result, in chunks of ``length`` steps."""
    found: Result = lax.platform_dependent(
        given, cpu=_by(forward, length), default=_result_elsewhere
    )
    return found


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sequence_kept(length: int, given: Given) -> tuple[Result, Did]:
    """Result and the values that the gradient needs; these have no gradient."""
    found: tuple[Result, Did] = lax.platform_dependent(
        given, cpu=forward_kept, default=_kept_elsewhere
    )
    return found


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(length: int, given: Given, h: Array, did: Did, grads: Result) -> Given:
    """Gradients of ``given``. ``h`` and ``did`` follow from it and only save work."""
    is_right = fault("back", given.input.dtype == jnp.float64) is None
    found: Given = lax.platform_dependent(
        given,
        h,
        did,
        grads,
        cpu=_by(backward, length) if is_right else _gradient_elsewhere,
        default=_gradient_elsewhere,
    )
    return found


@functools.cache
def _by(way: Callable[..., Any], length: int) -> Callable[..., Any]:
    """One and the same function every time: JAX traces it once for each set of shapes."""
    return partial(way, length)


# --- rules: each is made of the functions above, so that it can be differentiated again

_Saved = tuple[Given, Array, Did]


def _sequence_there(length: int, given: Given) -> tuple[Result, _Saved]:
    result, did = _sequence_kept(length, given)
    return result, (given, result.output, did)


def _sequence_back(length: int, saved: _Saved, grads: Result) -> tuple[Given]:
    return (_gradient(length, *saved, grads),)


def _kept_there(length: int, given: Given) -> tuple[tuple[Result, Did], _Saved]:
    result, did = _sequence_kept(length, given)
    return (result, did), (given, result.output, did)


def _kept_back(length: int, saved: _Saved, grads: tuple[Result, Did]) -> tuple[Given]:
    return (_gradient(length, *saved, grads[0]),)


def _gradient_there(length: int, given: Given, h: Array, did: Did, grads: Result) -> Any:
    return _gradient(length, given, h, did, grads), (given, h, did, grads)


def _gradient_back(length: int, saved: Any, twice: Given) -> Any:
    given, h, did, grads = saved
    # Of the plain loop's: gradients that the cell stops stay stopped.
    _, pull = jax.vjp(partial(_gradient_by, _result_of_loop), given, grads)
    d_given, d_grads = pull(twice)
    return d_given, jnp.zeros_like(h), jax.tree.map(jnp.zeros_like, did), d_grads


_sequence.defvjp(_sequence_there, _sequence_back)
_sequence_kept.defvjp(_kept_there, _kept_back)
_gradient.defvjp(_gradient_there, _gradient_back)


# --- on other devices


def _result_elsewhere(given: Given) -> Result:
    output, (_, *rest), active = xla.run(*given)
    return Result(output, tuple(rest), active)


def _kept_elsewhere(given: Given) -> tuple[Result, Did]:
    """Nothing is kept: the gradient computes all again."""
    result, p = _result_elsewhere(given), given.p
    empty = partial(jnp.zeros, dtype=given.input.dtype)
    steps, batch, _ = given.input.shape
    width = p.key_weight.shape[1] + p.value_weight.shape[1]
    gates = p.weight_ih.shape[0] * p.weight_ih.shape[1]
    sequence = empty(result.output.shape)
    c = sequence if result.rest else None
    return result, Did(c, empty((steps * batch, width)), sequence, empty((steps, batch, gates)))


def _gradient_elsewhere(given: Given, h: Array, did: Did, grads: Result) -> Given:
    return _gradient_by(_result_elsewhere, given, grads)


def _result_of_loop(given: Given) -> Result:
    did = loop(*given, key=None, record=False)
    return Result(did.output, did.state[1:], did.active)


def _gradient_by(way: Callable[[Given], Result], given: Given, grads: Result) -> Given:
    def result(p: Parameters, input: Array, state: State) -> tuple[Array, State]:
        found = way(given._replace(p=p, input=input, state=state))
        return found.output, found.rest

    _, pull = jax.vjp(result, given.p, given.input, given.state)
    d_p, d_input, d_state = pull((grads.output, grads.rest))
    return Given(d_p, d_input, d_state, None, None)
