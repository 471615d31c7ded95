"""One step of a RIM cell, written from its equations with loops and vectors only.

Slow on purpose: no batch axis, no einsum, no mask arithmetic, so that it can share no mistake with
the module it judges. It is differentiable, and stops the gradients that the equations stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rims.cells import RIM_LSTMCell
from rims.step import RIMCell

Weights = Mapping[str, Tensor]


class OracleStep(NamedTuple):
    """What the equations give for a batch."""

    state: tuple[Tensor, ...]  # each (B, N d)
    active: list[list[int]]  # per row, the active mechanisms in ascending order
    input_attention: Tensor  # (B, N, 1 + S) weight on the null slot and the input's elements
    communication: Tensor  # (B, M, N, N) [head, reader, read]


class _Sample(NamedTuple):
    state: list[Tensor]  # each (N d,)
    active: list[int]
    input_attention: Tensor  # (N, 1 + S)
    communication: Tensor  # (M, N, N)


def rim_step(cell: RIMCell, input: Tensor, state: tuple[Tensor, ...]) -> OracleStep:
    """Advance ``state`` (each (B, D)) by ``input``, (B, I) or (B, S, I), at least one row."""
    weights = dict(cell.named_parameters())
    rows = [
        _sample(cell, weights, input[b], [part[b] for part in state]) for b in range(len(input))
    ]
    return OracleStep(
        tuple(torch.stack([row.state[i] for row in rows]) for i in range(len(state))),
        [row.active for row in rows],
        torch.stack([row.input_attention for row in rows]),
        torch.stack([row.communication for row in rows]),
    )


def _sample(cell: RIMCell, weights: Weights, x: Tensor, state: list[Tensor]) -> _Sample:
    mechanisms = range(cell.num_rims)
    old = [part.chunk(cell.num_rims) for part in state]  # [tensor][mechanism]

    # 1. attention over the null slot (score 0, value 0) and the elements of the input
    elements = x if cell.input_slots else x[None]
    num_heads = cell.num_input_heads
    to_key = weights["key_weight"]
    to_value = weights["value_weight"]
    all_scores = []  # [mechanism][head][element]
    for m in mechanisms:
        query = old[0][m] @ weights["query_weight"][m]
        of_heads = []
        for head in range(num_heads):
            keys = [_head(e @ to_key, head, num_heads) for e in elements]
            part = _head(query, head, num_heads)
            of_heads.append([part.dot(key) / math.sqrt(len(key)) for key in keys])
        all_scores.append(of_heads)
    log_odds = [[torch.stack(s).exp().sum().log() for s in of_heads] for of_heads in all_scores]
    shares = _shares(cell, log_odds)
    reads, probs = [], []
    for m in mechanisms:
        read, prob = [], []
        for head in range(num_heads):
            powers = torch.stack(all_scores[m][head]).exp()
            among, share = powers / powers.sum(), shares[m][head]
            values = [_head(e @ to_value, head, num_heads) for e in elements]
            mean = torch.stack([a * v for a, v in zip(among, values, strict=True)]).sum(0)
            read.append(mean * _factor(cell, share))
            null = 1 - share if cell.competition == "null" else torch.zeros_like(share)
            prob.append(torch.cat([null[None], share * among]))
        reads.append(torch.cat(read))
        probs.append(torch.stack(prob).mean(0))
    odds = [torch.stack(own).mean() for own in log_odds]

    # 2. the N - k that attend most to the null slot rest; of equals the later ones
    active = _select(cell, odds)

    # 3. candidates of all
    update = _lstm if isinstance(cell, RIM_LSTMCell) else _gru
    candidates = [update(weights, m, reads[m], [part[m] for part in old]) for m in mechanisms]

    # 4. communication; what rests is read as a constant
    resting = list(old[0]) if cell.comm_reads == "state" else [each[0] for each in candidates]
    seen = [candidates[m][0] if m in active else resting[m].detach() for m in mechanisms]
    updates, read_weights = _communicate(cell, weights, seen)

    # 5. new state
    new = []
    for i, pieces in enumerate(old):
        columns = []
        for m in mechanisms:
            if m not in active:
                columns.append(pieces[m])
            elif i == 0:
                columns.append(candidates[m][0] + updates[m])
            else:
                columns.append(candidates[m][i])
        new.append(torch.cat(columns))
    return _Sample(new, active, torch.stack(probs), read_weights)


def _shares(cell: RIMCell, odds: list[list[Tensor]]) -> list[list[Tensor]]:
    """Weight of the input for each mechanism and head, from the log odds."""
    if cell.competition == "null":
        return [[_sigma(one) for one in of_heads] for of_heads in odds]
    found = []
    for column in zip(*odds, strict=True):  # one head, all mechanisms
        powers = torch.stack(column).exp()
        share = powers / powers.sum()
        if cell.num_rims > cell.k + 1:
            threshold = sorted(share, key=lambda w: -w.item())[cell.k]
            rest = [torch.relu(w - threshold - 1e-7) for w in share]
            share = torch.stack(rest) / (torch.stack(rest).sum() + 1e-7)
        found.append(list(share))
    return [list(of_heads) for of_heads in zip(*found, strict=True)]


def _factor(cell: RIMCell, share: Tensor) -> Tensor:
    """What the read values are multiplied with."""
    return {
        "null": share,
        "none": torch.ones_like(share),
        "straight_through": share + (1 - share).detach(),
    }[cell.input_gate]


def _select(cell: RIMCell, odds: list[Tensor]) -> list[int]:
    """The active mechanisms in ascending order."""
    mechanisms = range(cell.num_rims)
    ranking = sorted(mechanisms, key=lambda m: (-odds[m].item(), m))
    active = ranking[: cell.k]
    if cell.tie_margin:
        powers = [math.exp(one.item()) for one in odds]
        total = sum(powers)
        weight = [p / (1 + p) if cell.competition == "null" else p / total for p in powers]
        least = weight[ranking[cell.k - 1]]
        active += [m for m in ranking[cell.k :] if weight[m] > least - cell.tie_margin]
    return sorted(active)


def _lstm(weights: Weights, m: int, read: Tensor, prev: list[Tensor]) -> list[Tensor]:
    h, c = prev
    from_read, from_state = _gates(weights, m, read, h, 4)
    s_i, s_f, s_g, s_o = (a + b for a, b in zip(from_read, from_state, strict=True))
    c = _sigma(s_f) * c + _sigma(s_i) * torch.tanh(s_g)
    h = _sigma(s_o) * torch.tanh(c)
    if "weight_hr" in weights:
        h = weights["weight_hr"][m] @ h
    return [h, c]


def _gru(weights: Weights, m: int, read: Tensor, prev: list[Tensor]) -> list[Tensor]:
    (h,) = prev
    (x_r, x_z, x_n), (h_r, h_z, h_n) = _gates(weights, m, read, h, 3)
    z = _sigma(x_z + h_z)
    n = torch.tanh(x_n + _sigma(x_r + h_r) * h_n)
    return [(1 - z) * n + z * h]


def _gates(
    weights: Weights, m: int, read: Tensor, h: Tensor, num_gates: int
) -> tuple[list[Tensor], list[Tensor]]:
    halves = []
    for name, vector in (("ih", read), ("hh", h)):
        weight = weights[f"weight_{name}"][m]
        size = len(weight) // num_gates
        half = []
        for gate in range(num_gates):
            rows = slice(gate * size, (gate + 1) * size)
            summed = weight[rows] @ vector
            if f"bias_{name}" in weights:
                summed = summed + weights[f"bias_{name}"][m, rows]
            half.append(summed)
        halves.append(half)
    return halves[0], halves[1]


def _communicate(
    cell: RIMCell, weights: Weights, seen: list[Tensor]
) -> tuple[list[Tensor], Tensor]:
    num_heads = cell.num_comm_heads
    if not num_heads:
        return [torch.zeros_like(e) for e in seen], seen[0].new_zeros(0, len(seen), len(seen))
    projected = {
        name: [e @ weights[f"comm_{name}_weight"][m] for m, e in enumerate(seen)]
        for name in ("query", "key", "value")
    }
    updates, weights_of_readers = [], []
    for reader in range(len(seen)):
        heads, weights_of_heads = [], []
        for head in range(num_heads):
            query = _head(projected["query"][reader], head, num_heads)
            keys = [_head(key, head, num_heads) for key in projected["key"]]
            values = [_head(value, head, num_heads) for value in projected["value"]]
            powers = [torch.exp(query.dot(key) / math.sqrt(len(key))) for key in keys]
            total = torch.stack(powers).sum()
            alphas = [power / total for power in powers]
            parts = [alpha * value for alpha, value in zip(alphas, values, strict=True)]
            heads.append(torch.stack(parts).sum(0))
            weights_of_heads.append(torch.stack(alphas))
        read = torch.cat(heads)
        gate = _sigma(_affine(weights, "gate", read))
        output = torch.tanh(_affine(weights, "output", read))
        kept = gate * seen[reader] if cell.comm_update == "convex" else 0
        updates.append(gate * output - kept)
        weights_of_readers.append(torch.stack(weights_of_heads))
    return updates, torch.stack(weights_of_readers, dim=1)  # (M, reader, read)


def _head(joined: Tensor, head: int, num_heads: int) -> Tensor:
    width = len(joined) // num_heads
    return joined[head * width : (head + 1) * width]


def _affine(weights: Weights, name: str, read: Tensor) -> Tensor:
    result = weights[f"comm_{name}_weight"] @ read
    bias = weights.get(f"comm_{name}_bias")
    return result if bias is None else result + bias


def _sigma(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))
