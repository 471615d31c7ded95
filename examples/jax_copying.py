"""The copying task in JAX: a RIM layer of Flax NNX trained with Optax.

Symbols are shown, then nothing for a while, then a sign to repeat them. Between the two a model has
to keep what it saw. `train` takes any module that maps (T, B, features) to a pair of outputs and a
last state.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from rims.jax import RIM_LSTM

SYMBOLS = 4


class Copier(nnx.Module):
    """A recurrent layer and logits of the symbol at every step."""

    def __init__(self, hidden_size: int, rngs: nnx.Rngs) -> None:
        self.memory = RIM_LSTM(SYMBOLS + 1, hidden_size, 4, 3, rngs=rngs)
        self.head = nnx.Linear(hidden_size, SYMBOLS, rngs=rngs)

    def __call__(self, input: Array) -> Array:
        """(T, B, symbols and sign) -> (T, B, symbols)."""
        output, _ = self.memory(input)
        logits: Array = self.head(output)
        return logits


def make_batch(key: Array, batch: int, length: int, wait: int) -> tuple[Array, Array]:
    """Input (T, B, symbols and sign) and the symbols (length, B) to repeat in the last steps."""
    symbols = jax.random.randint(key, (length, batch), 0, SYMBOLS)
    shown = jax.nn.one_hot(symbols, SYMBOLS + 1)
    nothing = jnp.zeros((wait, batch, SYMBOLS + 1))
    sign = jnp.zeros((length, batch, SYMBOLS + 1)).at[..., SYMBOLS].set(1)
    return jnp.concatenate([shown, nothing, sign]), symbols


def main(
    updates: int = 600, batch: int = 32, length: int = 3, wait: int = 5, hidden_size: int = 32
) -> tuple[list[float], float]:
    """Train; the loss of every update and the share of symbols repeated rightly at the end."""
    model = Copier(hidden_size, nnx.Rngs(0))
    graph, params = nnx.split(model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))

    def loss_of(params: Any, input: Array, target: Array) -> tuple[Array, Array]:
        logits = nnx.merge(graph, params)(input)[-length:]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()
        return loss, (logits.argmax(-1) == target).mean()

    @jax.jit
    def update(params: Any, state: Any, key: Array) -> tuple[Any, Any, Array, Array]:
        input, target = make_batch(key, batch, length, wait)
        (loss, right), grads = jax.value_and_grad(loss_of, has_aux=True)(params, input, target)
        changes, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, changes), state, loss, right

    state, losses = optimizer.init(params), []
    for key in jax.random.split(jax.random.key(1), updates):
        params, state, loss, right = update(params, state, key)
        losses.append(float(loss))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, {float(right):.0%} of symbols repeated")
    return losses, float(right)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    for name in ("updates", "batch", "length", "wait", "hidden-size"):
        parser.add_argument(f"--{name}", type=int)
    main(**vars(parser.parse_args()))
