"""Every core over sequences with episode ends equals stepping and starting anew by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from agents.model.cores import RecurrentCore
from core_cases import (
    HIDDEN_SIZE,
    INPUT_SIZE,
    KINDS,
    NAMES,
    NUM_ENVS,
    NUM_STEPS,
    WITH_MEMORY,
    assert_same,
    learned_start,
    make_config,
    make_core,
    make_reset,
    make_sequence,
    start_of,
    step_by_step,
)
from lab.core_modules import CoreState, Memoryless, find_state_form, layer_class
from lab.cores import CORE_NAMES
from rims import RIM_GRU, RIM_LSTM


def gradients(core: RecurrentCore, output: Tensor, state: CoreState) -> list[Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).double()
    loss = (output * weights).sum() + sum(part.square().sum() for part in state)
    found = torch.autograd.grad(loss, list(core.parameters()), allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(core.parameters(), found, strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_sequence_equals_stepping_and_starting_anew(name: str, learned: bool, kind: str) -> None:
    core = make_core(name, learned)
    assert bool(learned_start(core)) == (learned and name != "none")
    input, state = make_sequence(core)
    reset = make_reset(kind)
    output, final = core(input, state, reset)
    expected, expected_final = step_by_step(core, input, state, reset)
    assert output.shape == (NUM_STEPS, NUM_ENVS, HIDDEN_SIZE)
    assert len(final) == len(state)
    assert_same(output, expected)
    for part, expected_part in zip(final, expected_final, strict=True):
        assert_same(part, expected_part)

    found = gradients(core, output, final)
    wanted = gradients(core, expected, expected_final)
    assert any(bool((g != 0).any()) for g in wanted)
    for part, expected_part in zip(found, wanted, strict=True):
        assert_same(part, expected_part)
    names = [parameter_name for parameter_name, _ in core.named_parameters()]
    taught = [
        bool((g != 0).any())
        for parameter_name, g in zip(names, found, strict=True)
        if "initial_" in parameter_name or "starts" in parameter_name
    ]
    assert taught == [kind != "none"] * len(learned_start(core))


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_gradient_stops_at_a_reset(name: str) -> None:
    core = make_core(name)
    input, state = make_sequence(core)
    input.requires_grad_()
    output, _ = core(input, state, make_reset("inside"))
    (gradient,) = torch.autograd.grad(output[-1, 1].sum(), input)
    assert bool((gradient[:3] == 0).all())  # environment 1 starts anew at step 3
    assert bool((gradient[3:, 1] != 0).any(-1).any())
    assert bool((gradient[:, [0, 2, 3, 4]] == 0).all())


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_state_before_a_reset_does_not_matter(name: str) -> None:
    core = make_core(name)
    input, state = make_sequence(core)
    other = tuple(torch.full_like(part, 7.0) for part in state)
    everyone = torch.zeros(NUM_STEPS, NUM_ENVS, dtype=torch.bool)
    everyone[0] = True
    assert torch.equal(core(input, state, everyone)[0], core(input, other, everyone)[0])
    never = torch.zeros_like(everyone)
    assert not torch.allclose(core(input, state, never)[0], core(input, other, never)[0])


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("name", WITH_MEMORY)
def test_an_episode_starts_from_zeros_or_what_was_learned(name: str, learned: bool) -> None:
    core = make_core(name, learned)
    input, state = make_sequence(core)
    begin = torch.zeros(NUM_STEPS, NUM_ENVS, dtype=torch.bool)
    begin[0] = True
    never = torch.zeros_like(begin)
    output, _ = core(input, state, begin)
    from_start = tuple(part.expand(-1, NUM_ENVS, -1).contiguous() for part in start_of(core))
    assert torch.equal(output, core(input, from_start, never)[0])
    # What is handed in with the first observations is replaced, as by any reset.
    initial = core.initial_state(NUM_ENVS)
    assert torch.equal(output, core(input, initial, begin)[0])
    assert torch.equal(output, core(input, initial, never)[0]) != learned


@pytest.mark.parametrize("name", NAMES)
def test_other_environments_do_not_notice_a_reset(name: str) -> None:
    core = make_core(name)
    input, state = make_sequence(core)
    never = torch.zeros(NUM_STEPS, NUM_ENVS, dtype=torch.bool)
    one = never.clone()
    one[3, 2] = True
    before, final_before = core(input, state, never)
    after, final_after = core(input, state, one)
    others = [0, 1, 3, 4]
    assert_same(before[:, others], after[:, others])
    for a, b in zip(final_before, final_after, strict=True):
        assert_same(a[:, others], b[:, others])
    assert_same(before[:3, 2], after[:3, 2])
    if name in WITH_MEMORY:
        assert not torch.allclose(before[3:, 2], after[3:, 2])


@pytest.mark.parametrize("name", NAMES)
def test_two_chunks_are_one_sequence(name: str) -> None:
    core = make_core(name)
    input, state = make_sequence(core)
    reset = make_reset("random")
    whole, final = core(input, state, reset)
    first, between = core(input[:3], state, reset[:3])
    second, last = core(input[3:], between, reset[3:])
    assert_same(torch.cat([first, second]), whole)
    for a, b in zip(last, final, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("name", CORE_NAMES)
def test_initial_state_is_zero_of_the_size_and_type_of_the_core(name: str) -> None:
    core = make_core(name)
    state = core.initial_state(3)
    parts = 2 if name.endswith("lstm") else 1
    size = HIDDEN_SIZE if name in WITH_MEMORY else 0
    assert [tuple(part.shape) for part in state] == [(1, 3, size)] * parts
    assert all(part.dtype == torch.float64 and not part.any() for part in state)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_left_as_they_were(name: str) -> None:
    core = make_core(name)
    input, state = make_sequence(core)
    reset = make_reset("random")
    copies = [part.clone() for part in (input, *state, reset)]
    core(input, state, reset)
    assert all(torch.equal(a, b) for a, b in zip((input, *state, reset), copies, strict=True))


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_cores_with_memory_remember(name: str) -> None:
    core = make_core(name)
    input, state = make_sequence(core)
    changed = input.clone()
    changed[0] += 1.0
    never = torch.zeros(NUM_STEPS, NUM_ENVS, dtype=torch.bool)
    assert not torch.allclose(core(input, state, never)[0][-1], core(changed, state, never)[0][-1])


def test_none_depends_on_the_present_input_only() -> None:
    core = make_core("none")
    input, state = make_sequence(core)
    order = torch.tensor([6, 0, 3, 1, 5, 2, 4])
    reset = make_reset("random")
    output, _ = core(input, state, reset)
    shuffled, _ = core(input[order], state, ~reset)
    assert_same(shuffled, output[order])
    changed = input.clone()
    changed[:-1] += 1.0
    assert_same(core(changed, state, reset)[0][-1], output[-1])
    assert not torch.allclose(core(changed, state, reset)[0][0], output[0])


def test_every_name_of_the_configuration_is_a_core() -> None:
    found = [layer_class(name) for name in CORE_NAMES]
    assert found == [RIM_LSTM, RIM_GRU, nn.LSTM, nn.GRU, Memoryless]


@pytest.mark.parametrize("name", CORE_NAMES)
def test_the_state_of_the_cores_that_come_along_is_known(name: str) -> None:
    core = RecurrentCore(INPUT_SIZE, make_config(name))
    assert core.form == find_state_form(core.module, name, INPUT_SIZE, HIDDEN_SIZE)
