"""Evaluation: exactly N first episodes, on levels never trained on, short ones not preferred."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agents.config import PPOConfig
from agents.judging import evaluate as evaluating
from agents.judging.evaluate import Evaluation, check_task, evaluate
from agents.learning.checkpoint import load_checkpoint
from agents.learning.rollout import Episode, Runner
from agents.model.policy import RecurrentActorCritic
from envs import (
    MISSION_LENGTH,
    ActionSpace,
    BackendChoice,
    Observation,
    Task,
    VectorEnv,
    View,
    get_task,
    level_seeds,
    make_vector_env,
)
from envs.backends.base import BackendStep

EMPTY = get_task("MiniGrid-Empty-Random-5x5-v0")
SEVEN = ActionSpace.discrete(7)


@pytest.fixture
def policy(toy_run: Path) -> RecurrentActorCritic:
    return load_checkpoint(toy_run).make_policy()


def run(policy: RecurrentActorCritic, **changes: Any) -> Evaluation:
    settings: dict[str, Any] = {"episodes": 12, "seed": 0, "backend": "gymnasium", **changes}
    return evaluate(policy, EMPTY, **settings)


@pytest.mark.parametrize("episodes", [1, 7, 20])
def test_one_episode_per_environment(policy: RecurrentActorCritic, episodes: int) -> None:
    done: list[int] = []
    result = run(policy, episodes=episodes, on_progress=done.append)
    assert [episode.env for episode in result.episodes] == list(range(episodes))
    assert sum(done) == episodes
    assert min(done) > 0
    assert all(1 <= episode.length <= 100 for episode in result.episodes)


def test_same_seed_same_result_and_another_differs(policy: RecurrentActorCritic) -> None:
    first, second, other = run(policy), run(policy), run(policy, seed=1)
    assert first == second
    assert json.dumps(first.to_dict()) == json.dumps(second.to_dict())
    assert first.episodes != other.episodes


def test_waves_are_numbered_through_and_each_level_used_once(
    policy: RecurrentActorCritic, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(policy, mode="greedy")
    monkeypatch.setattr(evaluating, "MAX_ENVS", 5)
    # Without sampling, an episode depends on its level alone.
    assert run(policy, mode="greedy").episodes == whole.episodes


def test_modes_differ_and_greedy_needs_no_seed_for_actions(policy: RecurrentActorCritic) -> None:
    with torch.no_grad():
        policy.actor.bias[:] = torch.tensor([0.0, 0, 3, 0, 0, 0, 0])  # mostly forward
    greedy, sample = run(policy, mode="greedy"), run(policy)
    assert (greedy.mode, sample.mode) == ("greedy", "sample")
    assert greedy.episodes != sample.episodes
    assert greedy.success_rate is not None
    assert sample.success_rate is not None
    assert greedy.success_rate.mean < sample.success_rate.mean  # forward for ever meets a wall


def test_to_dict_is_plain_and_agrees_with_the_episodes(policy: RecurrentActorCritic) -> None:
    result = run(policy, seed=5)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["task"] == EMPTY.id
    assert (plain["episodes"], plain["seed"], plain["mode"]) == (12, 5, "sample")
    assert plain["backend"] == "gymnasium"
    for key, values in (
        ("success_rate", [float(e.success is True) for e in result.episodes]),
        ("mean_return", [e.reward for e in result.episodes]),
        ("mean_length", [float(e.length) for e in result.episodes]),
    ):
        assert plain[key]["mean"] == pytest.approx(np.mean(values))
        assert plain[key]["low"] <= plain[key]["mean"] <= plain[key]["high"]


def test_levels_are_those_of_the_evaluation_split(
    policy: RecurrentActorCritic, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def spy(
        task: Task, num_envs: int, seed: Sequence[int], backend: BackendChoice, *, view: View
    ) -> VectorEnv:
        if num_envs > 1:  # not the look at the number of actions
            used.extend(seed)
        return make_vector_env(task, num_envs, seed, backend, view=view)

    monkeypatch.setattr(evaluating, "make_vector_env", spy)
    run(policy, seed=3, mode="greedy")
    assert used == level_seeds(3, "eval", 12)
    assert len(set(used)) == 12
    trained = {seed for run_seed in range(5) for seed in level_seeds(run_seed, "train", 64)}
    assert trained.isdisjoint(used)


def test_wrong_number_of_actions_is_refused(policy: RecurrentActorCritic) -> None:
    task = get_task("MiniGrid-Dynamic-Obstacles-5x5-v0")  # 3 actions
    for call in (
        lambda: check_task(policy, task, "gymnasium"),
        lambda: evaluate(policy, task, episodes=2, seed=0, backend="gymnasium"),
    ):
        with pytest.raises(
            ValueError, match=r"has 3 actions, but the agent .* left, right,"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_agent_of_few_actions_is_judged_where_they_are() -> None:
    config = PPOConfig(env=EMPTY.id, core="none", actions="left,forward")
    policy = RecurrentActorCritic(config, 7, read_mission=False)
    for task in (EMPTY, get_task("MiniGrid-Dynamic-Obstacles-5x5-v0")):
        assert len(evaluate(policy, task, episodes=2, seed=0, backend="gymnasium").episodes) == 2


def test_episode_starts_without_memory_of_the_one_before(policy: RecurrentActorCritic) -> None:
    """The first value of a second episode is that of a fresh agent seeing the same."""
    with make_vector_env(EMPTY, 4, 0, "gymnasium") as env:
        runner = Runner(env, policy, torch.Generator().manual_seed(0))
        step = runner.step()
        while not (step.episode_start.any() and not step.episode_start.all()):
            step = runner.step()
        observations = type(step.observation).stack([step.observation])
        with torch.no_grad():
            fresh = policy(observations, policy.initial_state(4), step.episode_start[None])
        start = step.episode_start
        assert torch.equal(step.output.values[0, start], fresh.values[0, start])


# Bias -------------------------------------------------------------------------------------------


class Scripted(VectorEnv):
    """Every episode is drawn: short and a success, or long and a failure, half each.

    An environment's first episode has 2 or 30 steps, its next one step more, and so on.
    """

    SHORT, LONG = 2, 30

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        super().__init__(task=task, backend="gymnasium", num_envs=len(seeds), actions=SEVEN)
        self._rngs = [np.random.default_rng(seed) for seed in seeds]
        self._left = np.zeros(len(seeds), dtype=np.int64)
        self._good = np.zeros(len(seeds), dtype=np.bool_)
        self._episodes = np.zeros(len(seeds), dtype=np.int64)

    def _begin(self, where: NDArray[np.bool_]) -> None:
        for env in np.flatnonzero(where):
            self._good[env] = self._rngs[env].random() < 0.5
            self._left[env] = self._episodes[env] + (self.SHORT if self._good[env] else self.LONG)
            self._episodes[env] += 1

    def _observe(self) -> Observation:
        shape = self.num_envs
        return Observation(
            image=np.zeros((shape, 7, 7, 3), dtype=np.uint8),
            direction=np.zeros(shape, dtype=np.int64),
            mission=np.zeros((shape, MISSION_LENGTH), dtype=np.int64),
        )

    def _reset(self) -> Observation:
        self._begin(np.ones(self.num_envs, dtype=np.bool_))
        return self._observe()

    def _step(
        self, actions: NDArray[np.integer[Any]], episode_start: NDArray[np.bool_]
    ) -> BackendStep:
        self._begin(episode_start)
        self._left[~episode_start] -= 1
        ended = (self._left == 0) & ~episode_start
        return BackendStep(
            observation=self._observe(),
            reward=(ended & self._good).astype(np.float32),
            terminated=ended & self._good,
            truncated=ended & ~self._good,
        )

    def _close(self) -> None:
        pass


def test_short_episodes_are_not_preferred(
    policy: RecurrentActorCritic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scripted(task: Task, num_envs: int, seed: Sequence[int], *_: Any, view: View) -> VectorEnv:
        return Scripted(task, seed)

    monkeypatch.setattr(evaluating, "make_vector_env", scripted)
    count = 200
    result = run(policy, episodes=count, seed=0)
    # Each environment's own first draw decides: exactly these succeed.
    expected = [np.random.default_rng(s).random() < 0.5 for s in level_seeds(0, "eval", count)]
    assert [episode.success for episode in result.episodes] == expected
    assert [episode.length for episode in result.episodes] == [2 if s else 30 for s in expected]
    # 200 fair draws: five standard deviations are 0.18.
    assert result.success_rate is not None
    assert abs(result.success_rate.mean - 0.5) < 0.18

    finished: list[Episode] = []
    with Scripted(EMPTY, level_seeds(0, "eval", 64)) as env:
        runner = Runner(env, policy, torch.Generator().manual_seed(0))
        while len(finished) < 50:
            finished += runner.step().episodes
    # The control: taking whatever finishes first from 64 environments reports far more.
    assert np.mean([episode.success for episode in finished[:50]]) > 0.7


def test_config_of_the_run_is_the_one_asked_for(toy_run: Path) -> None:
    config: PPOConfig = load_checkpoint(toy_run).config
    assert config.core == "rim_lstm"
