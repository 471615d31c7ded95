"""Making vector environments: which backend runs a task, and with which seeds."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from envs.actions import action_names
from envs.base import BackendName, VectorEnv
from envs.seeding import SEED_LIMIT, level_seeds
from envs.suites import Task, get_task

if TYPE_CHECKING:
    from envs.gymnasium_backend import GymnasiumVectorEnv

__all__ = [
    "BackendChoice",
    "make_drawable_env",
    "make_vector_env",
    "mission_varies",
    "require_makeable",
    "resolve_backend",
]

BackendChoice = Literal["auto", "envpool", "gymnasium"]

# The wave function collapse levels need an optional part of minigrid, which imports these.
_WFC_PREFIX = "MiniGrid-WFC-"
_WFC_MODULES = ("imageio", "networkx")


def resolve_backend(task: Task | str, backend: BackendChoice = "auto") -> BackendName:
    """The backend that will run a task. Makes no environment, so it can be asked beforehand.

    Args:
        task: a task or its gymnasium id.
        backend: ``"auto"`` is EnvPool if it is installed and knows the task, else gymnasium.

    Raises:
        ValueError: if the task or the backend is unknown, or the backend cannot run the task.

    >>> resolve_backend("MiniGrid-DoorKey-5x5-v0", "gymnasium")
    'gymnasium'
    """
    task = _as_task(task)
    if backend not in get_args(BackendChoice):
        raise ValueError(
            f"resolve_backend: backend must be one of {', '.join(get_args(BackendChoice))}; "
            f"got {backend!r}."
        )
    if backend != "gymnasium":
        from envs.envpool_backend import why_not

        reason = why_not(task)
        if reason is None:
            return "envpool"
        if backend == "envpool":
            raise ValueError(
                f"cannot run {task.id!r} on EnvPool: {reason}. Use the gymnasium backend."
            )
    if task.id.startswith(_WFC_PREFIX) and not all(map(importlib.util.find_spec, _WFC_MODULES)):
        raise ValueError(
            f"cannot run {task.id!r} on gymnasium: it needs {' and '.join(_WFC_MODULES)}. "
            "Install minigrid[wfc]."
        )
    return "gymnasium"


def make_vector_env(
    task: Task | str,
    num_envs: int,
    seed: int | Sequence[int],
    backend: BackendChoice = "auto",
    num_threads: int = 1,
) -> VectorEnv:
    """Make ``num_envs`` environments of a task that are stepped together.

    Args:
        task: a task or its gymnasium id.
        num_envs: number of environments, E.
        seed: one seed per environment, each in ``[0, 2**31)``; or the seed of a run, from which
            they are derived as ``level_seeds(seed, "train", num_envs)``.
        backend: see :func:`resolve_backend`.
        num_threads: threads of EnvPool. Results do not depend on it.

    Raises:
        ValueError: if an argument is outside its range or the backend cannot run the task.

    >>> with make_vector_env("MiniGrid-DoorKey-5x5-v0", 4, seed=1, backend="gymnasium") as env:
    ...     observation = env.reset()
    ...     result = env.step(np.zeros(4, dtype=np.int64))
    >>> observation.image.shape, result.valid.tolist()
    ((4, 7, 7, 3), [True, True, True, True])
    """
    task = _as_task(task)
    if num_envs < 1:
        raise ValueError(f"make_vector_env: num_envs must be >= 1; got {num_envs}.")
    if num_threads < 1:
        raise ValueError(f"make_vector_env: num_threads must be >= 1; got {num_threads}.")
    if isinstance(seed, int | np.integer):
        seeds = level_seeds(int(seed), "train", num_envs)
    else:
        seeds = [int(level_seed) for level_seed in seed]
    if len(seeds) != num_envs:
        raise ValueError(
            f"make_vector_env: seed must be one seed per environment ({num_envs}); "
            f"got {len(seeds)} seeds."
        )
    if not all(0 <= level_seed < SEED_LIMIT for level_seed in seeds):
        raise ValueError(f"make_vector_env: seeds must lie in [0, 2**31); got {seeds}.")
    chosen = resolve_backend(task, backend)
    try:
        return _make(task, chosen, seeds, num_threads)
    except (TypeError, AssertionError) as error:  # such as an argument it does not have
        if not (task.gym_kwargs or task.envpool_kwargs):
            raise
        cause = " ".join(str(error).split()).removesuffix(".")
        raise ValueError(
            f"environment {task.id!r} cannot be made with its arguments on {chosen}: {cause}."
        ) from None


def _make(task: Task, backend: BackendName, seeds: list[int], num_threads: int) -> VectorEnv:
    if backend == "envpool":
        from envs.envpool_backend import EnvPoolVectorEnv

        return EnvPoolVectorEnv(task, seeds, num_threads)
    from envs.gymnasium_backend import GymnasiumVectorEnv

    return GymnasiumVectorEnv(task, seeds)


def require_makeable(
    task: Task | str, backend: BackendChoice = "auto", actions: Sequence[int] | None = None
) -> BackendName:
    """The backend that will run a task, after seeing that it can.

    An environment is made only where it has arguments, or has to have actions: nothing else can
    check them.

    Args:
        task: a task or its gymnasium id.
        backend: see :func:`resolve_backend`.
        actions: numbers of actions that it must have.

    Raises:
        ValueError: as :func:`resolve_backend`, or if the environment refuses its arguments or does
            not have one of the actions.

    >>> require_makeable("MiniGrid-DoorKey-5x5-v0", "gymnasium")
    'gymnasium'
    """
    task = _as_task(task)
    chosen = resolve_backend(task, backend)
    if task.gym_kwargs or task.envpool_kwargs or actions:
        with make_vector_env(task, 1, [0], chosen) as env:
            there = range(env.num_actions)
        if actions and max(actions) >= len(there):
            raise ValueError(
                f"actions must be of those that {task.id} has, {', '.join(action_names(there))}; "
                f"got {', '.join(action_names(actions))}."
            )
    return chosen


def make_drawable_env(task: Task | str, seed: int) -> GymnasiumVectorEnv:
    """One environment, on gymnasium, whose frames can be drawn: for recording an episode.

    Args:
        task: a task or its gymnasium id.
        seed: seed of its levels.

    Raises:
        ValueError: if the task cannot run.

    >>> with make_drawable_env("MiniGrid-DoorKey-5x5-v0", 0) as env:
    ...     _ = env.reset()
    ...     env.frame().shape
    (160, 160, 3)
    """
    task = _as_task(task)
    resolve_backend(task, "gymnasium")
    from envs.gymnasium_backend import GymnasiumVectorEnv

    return GymnasiumVectorEnv(task, [seed], drawable=True)


def mission_varies(task: Task | str, *, samples: int = 32) -> bool:
    """Whether a task's mission differs between levels, so that a policy has to read it.

    Looks at ``samples`` levels on gymnasium, whose missions are those of EnvPool, and stops at the
    first difference. The answer is cached.

    Args:
        task: a task or its gymnasium id.
        samples: number of levels looked at. A mission rarer than that can be missed.

    >>> mission_varies("MiniGrid-DoorKey-5x5-v0")
    False
    """
    task = _as_task(task)
    if task.id.startswith(_WFC_PREFIX):
        return False  # EnvPool runs these also where gymnasium, used below, lacks what they need
    return _mission_varies(task.id, json.dumps(dict(task.gym_kwargs)), samples)


@lru_cache(maxsize=256)
def _mission_varies(id: str, gym_kwargs: str, samples: int) -> bool:
    from envs.gymnasium_backend import make_env, quiet

    task = Task(id=id, gym_kwargs=json.loads(gym_kwargs))
    env = make_env(task)
    first: str | None = None
    try:
        with quiet(task):
            for seed in range(samples):
                mission = env.reset(seed=seed)[0]["mission"]
                if first is not None and mission != first:
                    return True
                first = mission
    finally:
        env.close()
    return False


def _as_task(task: Task | str) -> Task:
    return get_task(task) if isinstance(task, str) else task
