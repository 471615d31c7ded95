"""Traps of recurrent PPO that no other file guards, and that docs/ppo.md names a test for each."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agents.config import PPOConfig
from agents.learning import session
from agents.learning.ppo import update
from agents.learning.rollout import Rollout, Runner, collect
from agents.learning.train import Trainer
from agents.model.observations import Observations
from agents.model.policy import RecurrentActorCritic
from command_line import ROOT
from envs import (
    MISSION_LENGTH,
    SUITES,
    BackendName,
    StepResult,
    Task,
    level_seeds,
    make_vector_env,
)
from lab.core_modules import CoreState
from lab.cores import CORE_NAMES
from lab.disk.folder import PROGRESS_NAME, read_progress
from tolerances import RATIO_ERROR

WITH_MEMORY = [name for name in CORE_NAMES if name != "none"]
LEFT, RIGHT, FORWARD = 0, 1, 2
TO_GOAL = [FORWARD, FORWARD, RIGHT, FORWARD, FORWARD]
LIMIT = 12

#: One level, from (1, 1), facing right, to (3, 3); cut after 12 steps.
CUT = Task(
    id="MiniGrid-Empty-5x5-v0",
    gym_kwargs={"max_steps": LIMIT},
    envpool_id="MiniGrid-Empty-5x5-v0",
    envpool_kwargs={"max_episode_steps": LIMIT},
)

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed"
)
BACKENDS = [pytest.param("envpool", marks=needs_envpool), "gymnasium"]


def make_config(core: str, **changes: Any) -> PPOConfig:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_rims": 4, "k": 2, "num_envs": 6}
    return PPOConfig(env=CUT.id, core=core, **{**sizes, "minibatches": 2, "epochs": 1, **changes})


def make_policy(config: PPOConfig) -> RecurrentActorCritic:
    torch.manual_seed(0)
    policy = RecurrentActorCritic(config, 7, read_mission=False)
    with torch.no_grad():  # far from uniform, so that a wrong state shows in the probabilities
        policy.actor.weight.mul_(300)
    return policy


def run_update(
    policy: RecurrentActorCritic, rollout: Rollout, config: PPOConfig
) -> dict[str, float]:
    """Metrics of an update that moves nothing."""
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    return update(policy, optimizer, rollout, config, torch.Generator().manual_seed(0))


def rollouts(
    policy: RecurrentActorCritic, *lengths: int, backend: BackendName = "gymnasium", envs: int = 6
) -> list[Rollout]:
    with make_vector_env(CUT, envs, 0, backend) as env:
        runner = Runner(env, policy, torch.Generator().manual_seed(0))
        return [collect(runner, length)[0] for length in lengths]


# Ends of episodes ---------------------------------------------------------------------------------


def script(*actions: int, steps: int = 3 * LIMIT + 5) -> list[int]:
    """The actions, then left turns."""
    return [*actions, *[LEFT] * (steps - len(actions))]


def play(backend: BackendName, columns: Sequence[Sequence[int]]) -> list[StepResult]:
    with make_vector_env(CUT, len(columns), 0, backend) as env:
        env.reset()
        return [env.step(np.array(actions)) for actions in zip(*columns, strict=True)]


def flags_of(results: Sequence[StepResult]) -> NDArray[np.bool_]:
    """(4, T, E): valid, episode_start, terminated, truncated."""
    parts = ("valid", "episode_start", "terminated", "truncated")
    return np.stack([[getattr(result, part) for result in results] for part in parts])


@pytest.mark.parametrize("backend", BACKENDS)
def test_flags_of_scripted_episodes(backend: BackendName) -> None:
    """The same on every backend: written down here, not compared with each other."""
    # Eight left turns end facing right, seven facing down, from where the way goes down first.
    late = [*[LEFT] * (LIMIT - 5), FORWARD, FORWARD, LEFT, FORWARD, FORWARD]
    results = play(backend, [script(*TO_GOAL), script(*late), script()])
    valid, start, terminated, truncated = flags_of(results)
    ends = {
        0: [(5, "terminated"), (18, "truncated"), (31, "truncated")],
        1: [(12, "terminated"), (25, "truncated"), (38, "truncated")],
        2: [(12, "truncated"), (25, "truncated"), (38, "truncated")],
    }
    for env, expected in ends.items():
        for kind, flags in (("terminated", terminated), ("truncated", truncated)):
            found = (1 + np.flatnonzero(flags[:, env])).tolist()
            assert found == [step for step, how in expected if how == kind], (env, kind)
        resets = [step + 1 for step, _ in expected]
        assert (1 + np.flatnonzero(start[:, env])).tolist() == [r for r in resets if r <= 41]
    assert np.array_equal(valid, ~start)
    reward = np.stack([result.reward for result in results])
    assert reward[4, 0] == pytest.approx(1 - 0.9 * 5 / LIMIT)
    assert reward[11, 1] == pytest.approx(0.1)
    assert np.count_nonzero(reward) == 2


def test_values_of_truncated_episodes_count_as_configured() -> None:
    """The option of the configuration reaches the advantages, and only where episodes are cut."""
    policy = make_policy(make_config("lstm"))
    cut, uncut = rollouts(policy, LIMIT + 3), rollouts(policy, 3)
    for (rollout,), differs in ((cut, True), (uncut, False)):
        assert bool(rollout.truncated.any()) is differs
        losses = [
            run_update(policy, rollout, make_config("lstm", bootstrap_truncated=choice))
            for choice in (True, False)
        ]
        assert (losses[0]["value_loss"] != losses[1]["value_loss"]) is differs


def test_steps_that_only_reset_are_not_counted(tmp_path: Path) -> None:
    """Nobody reaches the goal of Empty-16x16 in 5 steps: of 16 rows, rows 6 and 12 are resets."""
    suite = tmp_path / "cut.toml"
    task = 'id = "MiniGrid-Empty-16x16-v0", gym_kwargs = { max_steps = 5 }'
    suite.write_text(f'name = "cut"\nunseen = []\ntrain = {{ {task} }}', encoding="utf-8")
    config = PPOConfig(
        suite=str(suite),
        core="none",
        hidden_size=8,
        num_envs=4,
        rollout_steps_per_env=16,
        minibatches=2,
        epochs=1,
        total_steps=57,  # 56 are counted in one rollout of 64
        backend="gymnasium",
    )
    Trainer(config, tmp_path / "run").run()
    columns = read_progress(tmp_path / "run")
    # Of the second rollout the first two rows end the episodes that were running, the third resets.
    assert columns["env_steps"] == [4 * 14, 4 * (14 + 13)]
    assert columns["episode_length_mean"][-1] == 5


# States -------------------------------------------------------------------------------------------


def bare(policy: RecurrentActorCritic, features: torch.Tensor) -> tuple[torch.Tensor, CoreState]:
    """The core's module alone, run at once from the state in which an episode starts."""
    count = features.shape[1]
    starts = [part.detach().expand(-1, count, -1).contiguous() for part in policy.core.starts]
    hx = policy.core.form.pack(tuple(starts)) if starts else None
    output, state = policy.core.module(features, hx)
    return output, state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("core", CORE_NAMES)
def test_steps_of_the_agent_are_those_of_the_bare_core(core: str) -> None:
    """No part of the state is lost or exchanged between two calls of the agent."""
    policy = make_policy(make_config(core)).double()
    with torch.no_grad():
        for parameter in policy.core.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    generator = torch.Generator().manual_seed(1)
    steps, envs = 4, 3
    observations = Observations(
        torch.randint(0, 4, (steps, envs, 7, 7, 3), generator=generator, dtype=torch.uint8),
        torch.zeros(steps, envs, dtype=torch.int64),
        torch.zeros(steps, envs, MISSION_LENGTH, dtype=torch.int64),
    )
    state = policy.initial_state(envs)
    values = []
    for t in range(steps):
        reset = torch.full((envs,), t == 0)
        step = Observations(*(part[t] for part in observations))
        _, output = policy.act(step, state, reset, drawn=None)
        state = output.state
        values.append(output.values)
    with torch.no_grad():
        expected, final = bare(policy, policy.encoder(observations))
        expected_values = policy.critic(expected).squeeze(-1)
    # Double precision; a sequence and single steps sum in blocks of different sizes.
    torch.testing.assert_close(torch.cat(values), expected_values, rtol=1e-9, atol=1e-10)
    for part, whole in zip(state, final, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-10)
    if len(state) == 2:
        assert not torch.allclose(state[0], state[1])  # so an exchange would have been seen


@pytest.mark.parametrize("core", CORE_NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ratio_is_one_before_the_first_step(core: str, backend: BackendName) -> None:
    """As logged by the update itself, with episodes that end inside the chunk."""
    config = make_config(core)
    policy = make_policy(config)
    for rollout in rollouts(policy, 17, 17, backend=backend):
        assert bool((rollout.truncated | rollout.terminated)[:-1].any(0).all())
        assert bool(rollout.episode_start[1:].any(0).all())
        assert run_update(policy, rollout, config)["ratio_error"] < RATIO_ERROR


@pytest.mark.parametrize("core", WITH_MEMORY)
@pytest.mark.parametrize("fault", ["state forgotten", "state of a neighbour", "reset a step late"])
def test_ratio_error_notices_a_wrong_state(core: str, fault: str) -> None:
    """The control of the test above: each of these mistakes shows in the metric."""
    config = make_config(core)
    policy = make_policy(config)
    _, rollout = rollouts(policy, LIMIT - 4, 17)  # begins in the middle of episodes
    assert not bool(rollout.episode_start[0].all())
    state, start = rollout.initial_state, rollout.episode_start
    if fault == "state forgotten":
        state = tuple(torch.zeros_like(part) for part in state)
    elif fault == "state of a neighbour":
        state = tuple(part.roll(1, dims=1) for part in state)
    else:
        start = torch.cat([start[:1], torch.zeros_like(start[:1]), start[1:-1]])
    wrong = rollout._replace(initial_state=state, episode_start=start)
    assert run_update(policy, wrong, config)["ratio_error"] > 1e-3


@pytest.mark.parametrize("core", CORE_NAMES)
def test_minibatch_of_one_step_or_none_is_finite(core: str) -> None:
    """Minibatches of a single step; of some of them that step only reset the environment."""
    config = make_config(core, minibatches=6, epochs=2)
    policy = make_policy(config)
    *_, alone, reset = rollouts(policy, LIMIT, 1, 1)
    assert bool((~torch.cat([alone.valid, reset.valid])).any())
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for rollout in (alone, reset):
        metrics = update(policy, optimizer, rollout, config, torch.Generator().manual_seed(0))
        known = [value for name, value in metrics.items() if name != "explained_variance"]
        assert all(math.isfinite(value) for value in known), metrics
    assert all(bool(parameter.isfinite().all()) for parameter in policy.parameters())


# What the agent is given --------------------------------------------------------------------------


@pytest.mark.parametrize("core", CORE_NAMES)
def test_nothing_of_an_agent_is_a_running_statistic(core: str) -> None:
    """All that a checkpoint has to hold are parameters; nothing drifts when the agent is used."""
    policy = make_policy(make_config(core))
    assert set(policy.state_dict()) == {name for name, _ in policy.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in policy.named_buffers()}
    rollouts(policy, LIMIT)
    for name, buffer in policy.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_rewards_are_those_of_the_environment() -> None:
    """Neither scaled nor clipped: 1 - 0.9 steps / limit on success, else 0."""
    policy = make_policy(make_config("none"))
    with torch.no_grad():
        policy.actor.weight.zero_()  # uniform, which finds the goal now and then
    task = Task(id="MiniGrid-Empty-Random-5x5-v0", gym_kwargs={"max_steps": LIMIT})
    with make_vector_env(task, 8, 0, "gymnasium") as env:
        rollout, _ = collect(Runner(env, policy, torch.Generator().manual_seed(0)), 4 * LIMIT)
    length = torch.zeros(8)
    for t in range(len(rollout.rewards)):
        length += rollout.valid[t]
        expected = torch.where(rollout.terminated[t], 1 - 0.9 * length / LIMIT, 0.0)
        torch.testing.assert_close(rollout.rewards[t], expected, rtol=1e-6, atol=1e-7)
        length[rollout.terminated[t] | rollout.truncated[t]] = 0
    assert bool(rollout.terminated.any())
    assert bool(rollout.truncated.any())


# Levels -------------------------------------------------------------------------------------------


def test_level_seeds_of_runs_and_splits_are_disjoint() -> None:
    """As many as a comparison of ten seeds uses: 128 environments and 200 episodes each."""
    seeds = [
        seed
        for run in range(10)
        for seed in (*level_seeds(run, "train", 128), *level_seeds(run, "eval", 200))
    ]
    assert len(set(seeds)) == len(seeds) == 10 * (128 + 200)


class _SeenError(Exception):
    """Enough was seen."""


def test_training_takes_the_seeds_of_its_own_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def spy(
        task: Task,
        num_envs: int,
        seed: Sequence[int],
        backend: BackendName,
        num_threads: int,
        view: object,
    ) -> None:
        seen.extend(seed)
        assert num_threads == 2
        raise _SeenError

    monkeypatch.setattr(session, "make_vector_env", spy)
    for run in (1, 2):
        with pytest.raises(_SeenError):
            Trainer(make_config("none", seed=run, threads=2), tmp_path / str(run)).run()
    assert seen == level_seeds(1, "train", 6) + level_seeds(2, "train", 6)


def test_small_tasks_have_few_levels() -> None:
    """Which is why other seeds are no unseen levels there; docs/generalization.md says so."""
    views = {}
    for suite in ("doorkey", "gotoredball"):
        with make_vector_env(SUITES[suite].train, 150, 0, "gymnasium") as env:
            views[suite] = len({image.tobytes() for image in env.reset().image})
    assert views["doorkey"] <= 36
    assert views["gotoredball"] > 70


@pytest.mark.parametrize(("suite", "first", "last"), [("doorkey", 250, 2560), ("empty", 100, 1024)])
def test_step_limits_grow_with_the_room(suite: str, first: int, last: int) -> None:
    """So returns say little across sizes: the same 30 steps are 0.89 in 5x5 and 0.99 in 16x16."""
    limits = []
    for task in SUITES[suite].tasks:
        made = gymnasium.make(task.id, disable_env_checker=True)
        limits.append(made.unwrapped.max_steps)  # type: ignore[attr-defined]
        made.close()
    assert limits == sorted(limits)
    assert (limits[0], limits[-1]) == (first, last)


# The documentation --------------------------------------------------------------------------------


def section(page: str, heading: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page} has no section {heading!r}"
    return found.group(1)


def table(text: str) -> list[list[str]]:
    """Cells of the rows of the first table, without its head."""
    lines = text[text.index("\n|") + 1 :].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows][2:]


def existing_tests(guards: str, what: str) -> set[str]:
    """The names of tests in a cell, each of which there is."""
    tests = re.findall(r"`(\w+\.py)::(\w+)`", guards)
    assert tests, f"{what} names no test"
    assert guards.count("::") == len(tests), f"{what} names a test in another form"
    for file, function in tests:
        path = ROOT / "tests" / file
        assert path.is_file(), f"{what}: there is no {file}"
        defined = re.findall(r"^def (test_\w+)\(", path.read_text("utf-8"), re.MULTILINE)
        assert function in defined, f"{what}: {file} has no {function}"
    return {function for _, function in tests}


def test_every_trap_of_the_documentation_has_a_test_that_exists() -> None:
    rows = table(section("ppo.md", "Traps"))
    assert [row[0] for row in rows] == [str(number) for number in range(1, 23)]
    named: set[str] = set()
    for number, *_, guards in rows:
        named |= existing_tests(guards, f"trap {number}")
    here = re.findall(r"^def (test_\w+)\(", Path(__file__).read_text("utf-8"), re.MULTILINE)
    of_documentation = {name for name in here if "documentation" in name}
    assert set(here) - of_documentation <= named  # nothing in this file is forgotten there


def test_every_logged_metric_is_in_the_documentation(toy_run: Path) -> None:
    header = (toy_run / PROGRESS_NAME).read_text(encoding="utf-8").splitlines()[0].split(",")
    rows = table(section("ppo.md", "Logged metrics"))
    assert [row[0].strip("`") for row in rows] == header


def test_options_of_the_documentation_have_their_defaults() -> None:
    """Every ``| `--option` | default |`` of the page."""
    text = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
    defaults = PPOConfig(env=CUT.id)
    rows = re.findall(r"^\| `--([a-z-]+)` \| ([^|]+) \|", text, re.MULTILINE)
    assert len(rows) > 20
    for name, shown in rows:
        value = getattr(defaults, name.replace("-", "_"))
        if isinstance(value, bool):
            assert shown.strip() == ("on" if value else "off"), name
        elif isinstance(value, str):
            assert shown.strip() == (value or "none"), name
        else:
            assert float(shown.replace(" ", "")) == value, name


def test_suites_of_the_documentation_are_those_there_are() -> None:
    rows = table(section("generalization.md", "Suites and presets"))
    shown = {row[0].strip("`"): row[1:] for row in rows}
    assert list(shown) == list(SUITES)
    for name, suite in SUITES.items():
        train, unseen, chance, preset, *_ = shown[name]
        assert train == suite.train.name
        assert unseen.split(", ") == [task.name for task in suite.unseen]
        assert chance == ("-" if suite.chance is None else f"{suite.chance:.2f}")
        pairs = dict(re.findall(r"`([a-z_]+) = ([^`]+)`", preset))
        assert pairs == {
            key: f"{value:_}".replace("_", " ") if type(value) is int else str(value)
            for key, value in suite.preset.items()
        }, name
