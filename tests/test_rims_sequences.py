"""A sequence is its steps: stepping, packing, resets, causality, samples that do not mix."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

import rims
from oracles import rim_step
from rims.step import RIMCell
from tolerances import assert_near

both = pytest.mark.parametrize("kind", [rims.RIM_LSTM, rims.RIM_GRU])
directions = pytest.mark.parametrize("bidirectional", [False, True])
Kind = type[rims.RIM_LSTM] | type[rims.RIM_GRU]
States = tuple[Tensor, ...]

#: Steps, batch, features.
T, B, I = 7, 3, 11  # noqa: E741
#: hidden_size, num_rims, k.
D, N, K = 10, 5, 2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(kind: Kind, **options: Any) -> Any:
    return kind(I, D, N, K, dtype=torch.float64, **options)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def random_states(layer: Any, batch: int) -> States:
    num_tensors = 2 if isinstance(layer, rims.RIM_LSTM) else 1
    rows = layer.num_layers * layer.num_directions
    return tuple(random(rows, batch, D) for _ in range(num_tensors))


def call(layer: Any, input: Any, state: States, **options: Any) -> tuple[Any, States]:
    """The public forward, with the state as a tuple for both kinds."""
    lstm = isinstance(layer, rims.RIM_LSTM)
    output, final = layer(input, state if lstm else state[0], **options)
    return output, final if lstm else (final,)


def gradients(layer: Any, leaves: list[Tensor], outputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a fixed random weighting of all outputs, by all leaves and parameters."""
    generator = torch.Generator().manual_seed(5)
    loss = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        loss = loss + (output * weights).sum()
    return torch.autograd.grad(
        loss, [*leaves, *layer.parameters()], allow_unused=True, materialize_grads=True
    )


def assert_same(
    layer: Any, leaves: list[Tensor], got: list[Tensor], expected: list[Tensor]
) -> None:
    """Values and gradients."""
    for one, other in zip(got, expected, strict=True):
        assert_near(one, other)
    for one, other in zip(
        gradients(layer, leaves, got), gradients(layer, leaves, expected), strict=True
    ):
        assert_near(one, other)


# --- steps


@both
def test_stepping_the_cell_is_the_layer(kind: Kind) -> None:
    layer = make(kind)
    cell = layer.cells[0]
    input, state = random(T, B, I), random_states(layer, B)
    output, final = call(layer, input, state)
    current = tuple(s[0] for s in state)
    outputs = []
    for x in input:
        result = cell(x, current if kind is rims.RIM_LSTM else current[0])
        current = result if kind is rims.RIM_LSTM else (result,)
        outputs.append(current[0])
    got, expected = [output, *final], [torch.stack(outputs), *(s[None] for s in current)]
    assert_same(layer, [input, *state], got, expected)


@both
def test_stepping_the_layer_is_the_layer(kind: Kind) -> None:
    layer = make(kind, num_layers=2)
    input, state = random(T, B, I), random_states(layer, B)
    output, final = call(layer, input, state)
    outputs, current = [], state
    for t in range(T):
        step, current = call(layer, input[t : t + 1], current)
        outputs.append(step)
    got, expected = [output, *final], [torch.cat(outputs), *current]
    assert_same(layer, [input, *state], got, expected)


@both
def test_layer_equals_the_equations(kind: Kind) -> None:
    layer = make(kind)
    (cell,) = layer.cells
    assert isinstance(cell, RIMCell)
    input, state = random(T, B, I), random_states(layer, B)
    output, final = call(layer, input, state)
    current, outputs = tuple(s[0] for s in state), []
    for x in input:
        current = rim_step(cell, x, current).state
        outputs.append(current[0])
    got, expected = [output, *final], [torch.stack(outputs), *(s[None] for s in current)]
    assert_same(layer, [input, *state], got, expected)


@both
@directions
def test_last_output_is_h_n(kind: Kind, bidirectional: bool) -> None:
    layer = make(kind, num_layers=2, bidirectional=bidirectional)
    output, (h_n, *_) = call(layer, random(T, B, I), random_states(layer, B))
    rows = layer.num_directions
    assert torch.equal(output[-1, :, :D], h_n[-rows])
    assert torch.equal(output[0 if bidirectional else -1, :, -D:], h_n[-1])


@both
@directions
def test_batch_first_and_unbatched_are_layouts(kind: Kind, bidirectional: bool) -> None:
    layer = make(kind, num_layers=2, bidirectional=bidirectional)
    turned = make(kind, num_layers=2, bidirectional=bidirectional, batch_first=True)
    turned.load_state_dict(layer.state_dict())
    input, state = random(T, B, I), random_states(layer, B)
    output, final = call(layer, input, state)
    output_turned, final_turned = call(turned, input.transpose(0, 1), state)
    assert_near(output_turned.transpose(0, 1), output)
    for end, other in zip(final, final_turned, strict=True):
        assert_near(end, other)
    for module in (layer, turned):  # a single sequence has no batch axis to be first
        single, ends = call(module, input[:, 1], tuple(s[:, 1] for s in state))
        assert_near(single, output[:, 1])
        for end, full in zip(ends, final, strict=True):
            assert_near(end, full[:, 1])


@both
def test_output_depends_on_the_past_only(kind: Kind) -> None:
    layer = make(kind, num_layers=2)
    input, state = random(T, B, I), random_states(layer, B)
    changed = input.detach().clone()
    changed[4] += 1
    before, _ = call(layer, input, state)
    after, _ = call(layer, changed, state)
    assert torch.equal(after[:4], before[:4])
    assert (after[4:] != before[4:]).any(-1).all()


@both
def test_bidirectional_output_depends_on_both_sides(kind: Kind) -> None:
    layer = make(kind, bidirectional=True)
    input, state = random(T, B, I), random_states(layer, B)
    changed = input.detach().clone()
    changed[4] += 1
    before, _ = call(layer, input, state)
    after, _ = call(layer, changed, state)
    differs = (after != before).reshape(T, B, 2, D).any(-1).any(1)
    assert differs.tolist() == [[t >= 4, t <= 4] for t in range(T)]


@both
@directions
def test_samples_do_not_mix(kind: Kind, bidirectional: bool) -> None:
    layer = make(kind, num_layers=2, bidirectional=bidirectional)
    input, state = random(T, B, I), random_states(layer, B)
    output, final = call(layer, input, state)
    for b in range(B):
        alone, ends = call(layer, input[:, b : b + 1], tuple(s[:, b : b + 1] for s in state))
        assert_near(alone, output[:, b : b + 1])
        for end, full in zip(ends, final, strict=True):
            assert_near(end, full[:, b : b + 1])


@both
@directions
def test_nan_stays_in_its_sample(kind: Kind, bidirectional: bool) -> None:
    layer = make(kind, num_layers=2, bidirectional=bidirectional)
    input, state = random(T, B, I), random_states(layer, B)
    clean, _ = call(layer, input, state)
    spoiled = input.detach().clone()
    spoiled[2, 1] = math.nan
    output, _ = call(layer, spoiled, state)
    assert output[:, 1].isnan().any()
    assert torch.equal(output[:, [0, 2]], clean[:, [0, 2]])


# --- packed sequences

#: Neither sorted nor distinct.
LENGTHS = [3, 5, 2, 5, 1]


@both
@directions
@pytest.mark.parametrize("is_sorted", [True, False])
def test_packed_is_every_sequence_alone(kind: Kind, bidirectional: bool, is_sorted: bool) -> None:
    layer = make(kind, num_layers=2, bidirectional=bidirectional)
    lengths = sorted(LENGTHS, reverse=True) if is_sorted else LENGTHS
    sequences = [random(length, I) for length in lengths]
    state = random_states(layer, len(lengths))
    packed = pack_sequence(sequences, enforce_sorted=is_sorted)
    output, final = call(layer, packed, state)

    assert isinstance(output, PackedSequence)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    for ours, theirs in [
        (output.sorted_indices, packed.sorted_indices),
        (output.unsorted_indices, packed.unsorted_indices),
    ]:
        assert (ours is None) == is_sorted
        # assert_close also compares None with None
        torch.testing.assert_close(ours, theirs)

    alone = [
        call(layer, sequence, tuple(s[:, b] for s in state)) for b, sequence in enumerate(sequences)
    ]
    outputs = [row for row, _ in alone]
    ends = [torch.stack(parts, dim=1) for parts in zip(*(e for _, e in alone), strict=True)]
    assert_same(layer, [*sequences, *state], [*unpack_sequence(output), *final], [*outputs, *ends])


@both
def test_packed_defaults_to_zero_states_and_ignores_batch_first(kind: Kind) -> None:
    layer = make(kind, batch_first=True)
    packed = pack_sequence([random(length, I) for length in LENGTHS], enforce_sorted=False)
    zeros = tuple(torch.zeros_like(s) for s in random_states(layer, len(LENGTHS)))
    assert torch.equal(layer(packed)[0].data, call(layer, packed, zeros)[0].data)


# --- resets

#: One flag per step and sample: none, at the start, twice in a row, at the end.
RESET = torch.zeros(T, B, dtype=torch.bool)
RESET[[3, 4], 1] = True
RESET[[0, 6], 2] = True


def split_run(layer: Any, input: Tensor, state: States, reset: Tensor) -> tuple[Tensor, States]:
    """Every sample alone, cut before each reset, each part started from zeros.

    Only the forward directions of the first part and the backward ones of the last are given
    ``state``; what they end in, at the other side, is the state returned.
    """
    forward = torch.ones(state[0].shape[0], dtype=torch.bool)
    if layer.bidirectional:
        forward[1::2] = False
    outputs, finals = [], []
    for b in range(input.shape[1]):
        cuts = [0, *(t for t in range(1, T) if reset[t, b]), T]
        parts, ends = [], []
        for start, stop in pairwise(cuts):
            given = forward & (start == 0) & ~reset[0, b] | ~forward & (stop == T)
            hx = tuple(s[:, b].where(given[:, None], torch.zeros_like(s[:, b])) for s in state)
            part, end = call(layer, input[start:stop, b], hx)
            parts.append(part)
            ends.append(end)
        outputs.append(torch.cat(parts))
        sides = zip(ends[0], ends[-1], strict=True)
        finals.append([last.where(forward[:, None], first) for first, last in sides])
    final = tuple(torch.stack(rows, dim=1) for rows in zip(*finals, strict=True))
    return torch.stack(outputs, dim=1), final


@both
@directions
@pytest.mark.parametrize("num_layers", [1, 2])
def test_reset_is_splitting_the_sequence(kind: Kind, bidirectional: bool, num_layers: int) -> None:
    layer = make(kind, num_layers=num_layers, bidirectional=bidirectional)
    input, state = random(T, B, I), random_states(layer, B)
    output, final = call(layer, input, state, reset=RESET)
    expected, ends = split_run(layer, input, state, RESET)
    assert_same(layer, [input, *state], [output, *final], [expected, *ends])
    assert not torch.equal(call(layer, input, state)[0], output)


@both
@directions
def test_reset_in_other_layouts(kind: Kind, bidirectional: bool) -> None:
    layer = make(kind, bidirectional=bidirectional)
    turned = make(kind, bidirectional=bidirectional, batch_first=True)
    turned.load_state_dict(layer.state_dict())
    input, state = random(T, B, I), random_states(layer, B)
    expected, ends = call(layer, input, state, reset=RESET)
    output, final = call(turned, input.transpose(0, 1), state, reset=RESET.T)
    assert_near(output.transpose(0, 1), expected)
    for one, other in zip(final, ends, strict=True):
        assert_near(one, other)
    for module in (layer, turned):
        output, final = call(module, input[:, 1], tuple(s[:, 1] for s in state), reset=RESET[:, 1])
        assert_near(output, expected[:, 1])
        for one, other in zip(final, ends, strict=True):
            assert_near(one, other[:, 1])


@both
def test_reset_false_changes_nothing(kind: Kind) -> None:
    layer = make(kind, num_layers=2, bidirectional=True)
    input, state = random(T, B, I), random_states(layer, B)
    none = torch.zeros(T, B, dtype=torch.bool)
    assert torch.equal(call(layer, input, state, reset=none)[0], call(layer, input, state)[0])


@both
def test_reset_forgets_nan_and_stops_gradients(kind: Kind) -> None:
    layer = make(kind)
    input, state = random(T, B, I), random_states(layer, B)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[0, 1] = True
    with torch.no_grad():
        for part in state:
            part[:, 1] = math.nan
    output, _ = call(layer, input, state, reset=reset)
    assert output.isfinite().all()
    (gradient,) = torch.autograd.grad(output.sum(), state[:1])
    assert gradient[0, 1].count_nonzero() == 0
    assert (gradient[0, [0, 2]] != 0).any(-1).all()


@both
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), torch.bool),
        ((T,), torch.bool),
        ((B, T), torch.bool),
        ((T, B, 1), torch.bool),
        ((T, 1), torch.bool),
        ((T, B), torch.uint8),
        ((T, B), torch.float64),
    ],
)
def test_reset_of_wrong_shape_or_type_is_refused(
    kind: Kind, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    with pytest.raises(
        ValueError, match=rf"^{kind.__name__}: reset must be a bool tensor"
    ) as error:
        make(kind)(random(T, B, I), reset=torch.zeros(shape, dtype=dtype))
    assert str(error.value).startswith(f"{kind.__name__}: ")
    assert str(error.value).endswith(f"got {dtype} of shape {shape}.")


@both
@pytest.mark.parametrize(
    "shape",
    [
        (),
        (T + 2,),
        (T, 1),
    ],
)
def test_reset_of_wrong_shape_for_one_sequence_is_refused(
    kind: Kind, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="reset must be a bool tensor"):
        make(kind)(random(T, I), reset=torch.zeros(shape, dtype=torch.bool))


@both
def test_reset_of_packed_is_refused(kind: Kind) -> None:
    packed = pack_sequence([random(5, I), random(3, I)])
    with pytest.raises(ValueError, match="reset cannot be combined with a PackedSequence"):
        make(kind)(packed, reset=torch.zeros(5, 2, dtype=torch.bool))
