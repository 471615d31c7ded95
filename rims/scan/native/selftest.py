"""The kernels of a sequence against PyTorch, on two short ones that take all their branches.

They come in two ranges, of which the longest has more steps than a block holds rows of, and in two
groups of blocks of different size, however many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rims.native import trust
from rims.scan.native import build
from rims.scan.native.recurrence import NativeRecurrence
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Hoisted, Recurrence, Sequence, new_carry
from rims.scan.torch.recurrence import TorchRecurrence

BATCH = 20

#: What makes a recurrence.
_Kind = Callable[[Weights, Rules, States, Flags], Recurrence]
NATIVE: _Kind = partial(NativeRecurrence, shares=2)


def fault(name: Literal["forward", "back"], double: bool) -> str | None:
    """Describe what is wrong with a kernel on this machine; None if nothing is."""
    code = build.code(name, double)
    what = f"{'gradients of ' if name == 'back' else ''}RIM layers, float{64 if double else 32}"
    return trust.fault(code, _pairs(name, torch.float64 if double else torch.float32), what)


@torch.no_grad()
def _pairs(name: str, dtype: torch.dtype) -> trust.Pairs:
    for case in cases(dtype):
        did = case.sequence(NATIVE)  # which the test of "forward" has judged
        if name == "forward":
            yield from zip(did, case.sequence(TorchRecurrence), strict=True)
        else:
            ways = (case.gradients(kind, did) for kind in (NATIVE, TorchRecurrence))
            yield from zip(*ways, strict=True)


class Case(NamedTuple):
    """The recurrent part of a sequence, its input side drawn at random."""

    ranges: tuple[tuple[int, int], ...]  # first step and the one after the last
    w: Weights
    rules: Rules
    states: States
    flags: Flags
    inputs: Hoisted
    grad_output: Tensor

    def sequence(self, kind: _Kind) -> Sequence:
        """Run the sequence with one implementation."""
        empty, steps = torch.empty_like, self.grad_output
        shape = (len(steps), BATCH, self.w.num_rims)
        active = torch.empty(shape, dtype=torch.bool, device="cpu")
        out = Sequence(empty(steps), None if self.states.c is None else empty(steps), active)
        recurrence = kind(self.w, self.rules, self.states, self.flags)
        for first, last in self.ranges:
            recurrence.forward(first, _range(self.inputs, first, last), out)
        return out

    def gradients(self, kind: _Kind, did: Sequence) -> list[Tensor | None]:
        """Gradients of everything given."""
        end = self.grad_output[0]
        carry = new_carry(end, None if self.states.c is None else end)
        out = Hoisted(*map(torch.empty_like, self.inputs))
        recurrence = kind(self.w, self.rules, self.states, self.flags)
        for first, last in reversed(self.ranges):
            inputs, d_inputs = (_range(part, first, last) for part in (self.inputs, out))
            grad_output = self.grad_output[first:last]
            recurrence.backward(first, inputs, did, grad_output, carry, d_inputs)
        there = (weight is not None and weight.numel() > 0 for weight in self.w[4:])
        weights = zip(recurrence.gradients(), there, strict=True)
        return [*carry, *out, *(grad if is_there else None for grad, is_there in weights)]


def _range(inputs: Hoisted, first: int, last: int) -> Hoisted:
    return Hoisted(*(part[first:last] for part in inputs))


def cases(dtype: torch.dtype) -> Iterator[Case]:
    """An LSTM, and a GRU twice; together they have every option that the kernels know."""
    lstm, gru = _drawn(dtype)
    yield lstm
    yield gru._replace(rules=gru.rules._replace(input_gate="straight_through"))
    silent = {name: getattr(gru.w, name)[..., :0] for name in Weights._fields[5:10]}
    yield gru._replace(
        ranges=((0, 1),),
        w=gru.w._replace(**silent),
        rules=gru.rules._replace(input_gate="none", num_heads=0),
        flags=Flags(*(None if flag is None else flag[:1] for flag in gru.flags)),
        inputs=Hoisted(*(part[:1] for part in gru.inputs)),
        grad_output=gru.grad_output[:1],
    )


def _drawn(dtype: torch.dtype) -> Iterator[Case]:
    # Of this seed flags and selections are as the tests want them.
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype, device="cpu")

    def flags(steps: int, chance: float) -> Tensor:
        drawn = torch.rand(steps, BATCH, generator=generator, dtype=torch.float32, device="cpu")
        return drawn < chance

    for ranges, gates, (n, k, d), (heads, dk, dv), is_lstm in (
        (((0, 3), (3, 4)), 4, (3, 2, 20), (2, 3, 5), True),
        (((0, 1), (1, 2)), 3, (4, 1, 17), (1, 4, 3), False),
    ):
        steps = ranges[-1][1]
        shapes: list[tuple[int, ...]] = [(1, 1)] * 4  # of the input side, which is not the kernels'
        shapes += [(n, gates * d, d), *((n, d, heads * size) for size in (dk, dk, dv))]
        shapes += [(d, heads * dv)] * 2
        shapes += [(n, gates * d)] * 2 + [(d,)] * 2 if is_lstm else []
        w = Weights(*(draw(*shape) / d**0.5 for shape in shapes))
        state = [draw(BATCH, n * d) for _ in range(4)]
        yield Case(
            ranges,
            w,
            Rules(k, heads, reads_state=not is_lstm),
            States(state[0], state[1]) if is_lstm else States(state[0], None, state[2]),
            Flags(flags(steps, 0.3), flags(steps, 0.8)),
            Hoisted(draw(steps, BATCH, n * d), draw(steps, BATCH, n * gates * d)),
            draw(steps, BATCH, n * d),
        )
