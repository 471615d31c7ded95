"""A sequence from the operator's arguments in differentiable PyTorch, for higher derivatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rims.functional import grouped_linear
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.torch import loop


def gradients(
    grad_outputs: tuple[Tensor | None, ...],
    input: Tensor,
    states: States,
    flags: Flags,
    w: Weights,
    rules: Rules,
    place: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of input, states and weights that can be differentiated again.

    ``grad_outputs`` are those of the output, the last h and the last c. With ``place`` (T, B) the
    input is (U, I), rows that steps share.
    """
    # Aliases: one argument may come of another (h of an earlier sequence, say), and what flows on
    # from one to the other is for autograd to follow, not for this function.
    with torch.enable_grad():
        arguments = [None if a is None else a.view_as(a) for a in (input, *states, *w)]
        assert arguments[0] is not None
        split = 1 + len(states)
        own_states, own_w = States(*arguments[1:split]), Weights(*arguments[split:])  # type: ignore[arg-type]
        sources = [a for a in arguments if a is not None and a.requires_grad]
        rows = arguments[0] if place is None else F.embedding(place, arguments[0])
        outputs = _run(rows, own_states, flags, own_w, rules)
        found = torch.autograd.grad(
            outputs, sources, grad_outputs[: len(outputs)], create_graph=True, allow_unused=True
        )
    by_source = dict(zip(map(id, sources), found, strict=True))
    return [None if a is None else by_source.get(id(a)) for a in arguments]


def _run(
    input: Tensor, states: States, flags: Flags, w: Weights, rules: Rules
) -> tuple[Tensor, ...]:
    """Output and last state."""
    batch = (input.shape[1], w.num_rims, w.unit_size)
    h, c, fresh_h, fresh_c = (None if s is None else s.reshape(batch) for s in states)
    assert h is not None
    key = input @ w.input_key / math.sqrt(w.input_key.shape[1])
    query_side = torch.einsum("tbk,ndk->tbnd", key, w.input_query)
    value = (input @ w.input_value).unsqueeze(2).expand(-1, -1, w.num_rims, -1)
    gate_side = grouped_linear(value, w.ih.mT)
    zero = h.new_zeros(())
    outputs = []
    for t in range(input.shape[0]):
        if flags.reset is not None:
            flag = flags.reset[t, :, None, None]
            h = torch.where(flag, zero if fresh_h is None else fresh_h, h)
            c = c if c is None else torch.where(flag, zero if fresh_c is None else fresh_c, c)
        did = loop.step(query_side[t], gate_side[t], h, c, w, rules)
        if flags.valid is not None:
            keep = flags.valid[t, :, None, None]
            h = torch.where(keep, did.h, h)
            c = c if c is None or did.c is None else torch.where(keep, did.c, c)
        else:
            h, c = did.h, did.c
        outputs.append(h.flatten(1))
    return (torch.stack(outputs), h.flatten(1), *(() if c is None else (c.flatten(1),)))
