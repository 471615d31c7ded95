"""Collecting: no break between rollouts, no memory across episodes, nothing lost on replay."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.config import PPOConfig
from agents.learning.rollout import (
    Episode,
    EpisodeTracker,
    Rollout,
    Runner,
    collect,
    minibatch_indices,
)
from agents.model.policy import RecurrentActorCritic
from envs import BackendName, StepResult, Task, VectorEnv, make_vector_env
from lab.cores import CoreName
from tolerances import RATIO_ERROR, assert_rounds

NAMES = get_args(CoreName)
WITH_MEMORY = [name for name in NAMES if name != "none"]
NUM_ENVS, NUM_STEPS, LIMIT = 8, 24, 9

#: Cut after 9 steps, which an agent that knows nothing sometimes solves before.
SHORT = Task(
    id="MiniGrid-Empty-Random-5x5-v0",
    gym_kwargs={"max_steps": LIMIT},
    envpool_id="MiniGrid-Empty-Random-5x5-v0",
    envpool_kwargs={"max_episode_steps": LIMIT},
)

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed"
)
BACKENDS = [pytest.param("envpool", marks=needs_envpool), "gymnasium"]


@pytest.fixture(params=BACKENDS)
def env(request: pytest.FixtureRequest) -> Iterator[VectorEnv]:
    backend: BackendName = request.param
    with make_vector_env(SHORT, NUM_ENVS, 0, backend) as made:
        yield made


def make_policy(core: str, num_actions: int = 7, **changes: Any) -> RecurrentActorCritic:
    torch.manual_seed(0)
    config = PPOConfig(
        env=SHORT.id,
        core=core,
        hidden_size=16,
        num_rims=4,
        k=2,
        **changes,
    )
    policy = RecurrentActorCritic(config, num_actions, read_mission=True)
    with torch.no_grad():  # far from uniform, so that a wrong state shows in the probabilities
        policy.actor.weight.mul_(300)
    return policy


def make_runner(env: VectorEnv, core: str, *, greedy: bool = False) -> Runner:
    generator = None if greedy else torch.Generator().manual_seed(0)
    return Runner(env, make_policy(core, env.num_actions), generator)


def ended(rollout: Rollout) -> torch.Tensor:
    return rollout.terminated | rollout.truncated


def assert_replayed(got: Tensor, expected: Tensor) -> None:
    """In single precision: 147 ones of a view, then at most 9 steps of one episode."""
    if got.numel() or expected.numel():  # a core without memory has nothing in its state
        assert_rounds(got, expected, 147, times=9)


@pytest.mark.parametrize("core", NAMES)
def test_replay_equals_what_was_stored(env: VectorEnv, core: str) -> None:
    runner = make_runner(env, core)
    for chunk in range(3):
        rollout, _ = collect(runner, NUM_STEPS)
        inside = ended(rollout)[:-1]
        assert int(inside.sum()) >= NUM_ENVS  # every environment is cut at least every 9 steps
        assert bool(rollout.episode_start[1:].any())
        if chunk and core in WITH_MEMORY:
            assert bool((rollout.initial_state[0] != 0).any())  # an episode goes on
        with torch.no_grad():
            output = runner.policy(
                rollout.observations, rollout.initial_state, rollout.episode_start
            )
        log_probs = output.log_probs.gather(-1, rollout.actions.unsqueeze(-1)).squeeze(-1)
        ratio = (log_probs - rollout.log_probs).exp()
        assert float((ratio - 1).abs().max()) < RATIO_ERROR
        assert_replayed(output.values, rollout.values[:-1])
        for part, after in zip(output.state, runner.state, strict=True):
            assert_replayed(part, after)


def test_chosen_actions_reach_the_environments_by_their_numbers(
    env: VectorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[NDArray[np.uint8]] = []
    step = env.step

    def spy(actions: NDArray[np.uint8]) -> StepResult:
        told.append(actions)
        return step(actions)

    monkeypatch.setattr(env, "step", spy)
    policy = make_policy("lstm", env.num_actions, actions="right,toggle,done")
    runner = Runner(env, policy, torch.Generator().manual_seed(0))
    rollout, _ = collect(runner, NUM_STEPS)
    assert set(np.unique(told)) == {1, 5, 6}
    numbers = torch.tensor(policy.actions)[rollout.actions]
    assert np.array_equal(numbers.numpy(), np.stack(told))
    assert np.array_equal(np.stack(runner.actions), np.stack(told))  # what a replay tells them


def test_rollout_after_an_update_is_by_the_new_weights(env: VectorEnv) -> None:
    """Within a rollout observations are encoded once; what was known before it is forgotten."""
    runner = make_runner(env, "none")
    collect(runner, NUM_STEPS)
    with torch.no_grad():
        for parameter in runner.policy.encoder.parameters():
            parameter.mul_(1.5)
    rollout, _ = collect(runner, NUM_STEPS)
    with torch.no_grad():
        output = runner.policy(rollout.observations, rollout.initial_state, rollout.episode_start)
    assert_replayed(output.values, rollout.values[:-1])


@pytest.mark.parametrize("core", WITH_MEMORY)
def test_replay_without_resets_would_be_noticed(env: VectorEnv, core: str) -> None:
    """The control of the test above: leaving one reset out moves a probability."""
    runner = make_runner(env, core)
    rollout, _ = collect(runner, NUM_STEPS)
    reset = rollout.episode_start.clone()
    reset[1:] = False
    with torch.no_grad():
        output = runner.policy(rollout.observations, rollout.initial_state, reset)
    log_probs = output.log_probs.gather(-1, rollout.actions.unsqueeze(-1)).squeeze(-1)
    assert float(((log_probs - rollout.log_probs).exp() - 1).abs().max()) > 1e-3


@pytest.mark.parametrize("core", NAMES)
def test_rollouts_follow_each_other_without_a_break(core: str) -> None:
    """Greedy, so that no randomness is drawn: 2 * T steps are T and T more."""

    def run(*lengths: int) -> tuple[list[Rollout], list[Episode]]:
        with make_vector_env(SHORT, NUM_ENVS, 0, "gymnasium") as env:
            runner = make_runner(env, core, greedy=True)
            results = [collect(runner, length) for length in lengths]
        return [r for r, _ in results], [e for _, episodes in results for e in episodes]

    (first, second), episodes = run(10, 14)
    (whole,), all_episodes = run(24)
    assert episodes == all_episodes
    assert len(episodes) >= NUM_ENVS
    for field in ("episode_start", "actions", "rewards", "terminated", "truncated", "valid"):
        joined = torch.cat([getattr(first, field), getattr(second, field)])
        assert torch.equal(joined, getattr(whole, field)), field
    joined = torch.cat([first.values[:-1], second.values])
    # Up to rounding: a view that is new in one rollout need not be new in the other.
    assert_replayed(joined, whole.values)
    assert_replayed(first.values[-1], second.values[0])
    views = [r.observations.distinct.image[r.observations.place] for r in (first, second, whole)]
    assert torch.equal(torch.cat(views[:2]), views[2])


def test_step_after_an_end_only_resets(env: VectorEnv) -> None:
    runner = make_runner(env, "gru")
    first, _ = collect(runner, NUM_STEPS)
    second, _ = collect(runner, NUM_STEPS)
    assert bool(first.episode_start[0].all())
    starts = torch.cat([first.episode_start, second.episode_start])
    ends = torch.cat([ended(first), ended(second)])
    valid = torch.cat([first.valid, second.valid])
    rewards = torch.cat([first.rewards, second.rewards])
    assert bool(valid[0].all())
    assert torch.equal(valid[1:], ~ends[:-1])
    assert torch.equal(starts[1:], ~valid[:-1])
    assert bool((rewards[~valid] == 0).all())
    assert not bool(ends[~valid].any())
    assert bool(torch.cat([first.terminated, second.terminated]).any())
    assert bool(torch.cat([first.truncated, second.truncated]).any())


@pytest.mark.parametrize("core", WITH_MEMORY)
def test_state_is_zeroed_exactly_where_an_episode_starts(env: VectorEnv, core: str) -> None:
    runner = make_runner(env, core)
    zeros = runner.policy.initial_state(NUM_ENVS)
    never = torch.zeros(1, NUM_ENVS, dtype=torch.bool)
    started = 0
    for t in range(NUM_STEPS):
        before = runner.state
        step = runner.step()
        observations = type(step.observation).stack([step.observation])
        with torch.no_grad():
            fresh = runner.policy(observations, zeros, never)
            carried = runner.policy(observations, before, never)
        start = step.episode_start
        assert torch.equal(step.output.values[0, start], fresh.values[0, start])
        assert torch.equal(step.output.values[0, ~start], carried.values[0, ~start])
        if t > 0:
            started += int(start.sum())
            differs = (fresh.values - carried.values)[0].abs() > 1e-6
            assert bool(differs.all())  # so the two lines above tell the two apart
    assert started >= NUM_ENVS


def test_last_value_is_of_the_observation_after_the_last_step(env: VectorEnv) -> None:
    runner = make_runner(env, "lstm")
    rollout, _ = collect(runner, LIMIT)  # the limit falls on the last step where nobody succeeded
    cut = rollout.truncated[-1]
    assert bool(cut.any())
    following = runner.step()
    last, value = rollout.values[-1], following.output.values[0]
    assert_replayed(value, last)  # encoded in another batch
    assert not bool(following.episode_start[cut].any())  # still the last one of its episode


def test_looking_changes_nothing(env: VectorEnv) -> None:
    runner = make_runner(env, "rim_gru", greedy=True)
    runner.step()
    state = [part.clone() for part in runner.state]
    first = runner.look()[1].values
    assert torch.equal(runner.look()[1].values, first)
    assert all(torch.equal(a, b) for a, b in zip(state, runner.state, strict=True))
    assert torch.equal(runner.step().output.values, first)


# Episodes ---------------------------------------------------------------------------------------


def flags(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.array(values, dtype=np.bool_)


def rewards(*values: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


def test_tracker_by_hand() -> None:
    tracker = EpisodeTracker(2)
    assert tracker.step(rewards(0.25, 0), flags(0, 0), flags(1, 1), rewards(0, 0)) == []
    assert tracker.step(rewards(0.5, 0), flags(1, 0), flags(1, 1), rewards(1, 0)) == [
        Episode(env=0, reward=0.75, length=2, success=True)
    ]
    # Environment 0 only resets here; 1 ends without a reward.
    assert tracker.step(rewards(0, 0), flags(0, 1), flags(0, 1), rewards(1, 0)) == [
        Episode(env=1, reward=0.0, length=3, success=False)
    ]
    # Environment 0 is rewarded on the way, but not at the end; 1 only resets.
    assert tracker.step(rewards(1, 0), flags(0, 0), flags(1, 0), rewards(1, 0)) == []
    assert tracker.step(rewards(-0.5, 0.5), flags(1, 1), flags(1, 1), rewards(0, np.nan)) == [
        Episode(env=0, reward=0.5, length=2, success=False),
        Episode(env=1, reward=0.5, length=1, success=None),
    ]


def test_episodes_agree_with_the_rollout(env: VectorEnv) -> None:
    runner = make_runner(env, "none")
    results = [collect(runner, NUM_STEPS) for _ in range(3)]
    episodes = [episode for _, found in results for episode in found]
    ends = torch.cat([ended(rollout) for rollout, _ in results])
    valid = torch.cat([rollout.valid for rollout, _ in results])
    reward = torch.cat([rollout.rewards for rollout, _ in results])
    for index in range(NUM_ENVS):
        mine = [episode for episode in episodes if episode.env == index]
        bounds = [0, *(ends[:, index].nonzero().flatten() + 1).tolist()]
        assert len(mine) == len(bounds) - 1
        for episode, start, stop in zip(mine, bounds[:-1], bounds[1:], strict=True):
            assert episode.length == int(valid[start:stop, index].sum()) <= LIMIT
            assert episode.reward == pytest.approx(float(reward[start:stop, index].sum()))
            assert episode.success == bool(reward[stop - 1, index] > 0)
    assert {episode.success for episode in episodes} == {True, False}


# Minibatches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_envs", "size"), [(8, 8), (8, 2), (12, 3), (5, 1)])
def test_minibatches_part_the_environments(num_envs: int, size: int) -> None:
    count = num_envs // size
    parts = list(minibatch_indices(num_envs, count, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == [size] * count
    assert sorted(torch.cat(parts).tolist()) == list(range(num_envs))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_minibatches_of_processes_are_those_of_one(processes: int) -> None:
    def parts(part: slice) -> list[torch.Tensor]:
        return list(minibatch_indices(24, 3, torch.Generator().manual_seed(5), part))

    own = [slice(r * 24 // processes, (r + 1) * 24 // processes) for r in range(processes)]
    for whole, *split in zip(parts(slice(None)), *map(parts, own), strict=True):
        assert {len(p) for p in split} == {8 // processes}  # each process has as many
        joined = [
            env + part.start for p, part in zip(split, own, strict=True) for env in p.tolist()
        ]
        assert sorted(joined) == sorted(whole.tolist())


def test_minibatches_are_shuffled_by_their_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.cat(list(minibatch_indices(32, 8, generator))) for _ in range(2))
    assert not torch.equal(first, second)
    again = torch.cat(list(minibatch_indices(32, 8, torch.Generator().manual_seed(0))))
    assert torch.equal(first, again)
