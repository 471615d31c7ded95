"""Making vector environments: which backend runs a task, and with which seeds."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from envs.actions import ActionSpace, action_names
from envs.backends.base import BackendName, EnvironmentFailed, VectorEnv
from envs.ids import is_builtin, is_stock
from envs.layout import AnyView, Layout
from envs.mission import UNKNOWN, encode_mission, words_of
from envs.seeding import SEED_LIMIT, level_seeds
from envs.suites import Task, get_task
from envs.view import STOCK_VIEW
from lab.words import message_of

if TYPE_CHECKING:
    from envs.backends.gymnasium_backend import GymnasiumVectorEnv

__all__ = [
    "BackendChoice",
    "actions_of",
    "make_drawable_env",
    "make_vector_env",
    "mission_varies",
    "require_makeable",
    "require_missions_differ",
    "resolve_backend",
    "view_of",
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
        from envs.backends.envpool_backend import why_not

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
    view: AnyView | None = None,
) -> VectorEnv:
    """Make ``num_envs`` environments of a task that are stepped together.

    Args:
        task: a task or its gymnasium id.
        num_envs: number of environments, E.
        seed: one seed per environment, each in ``[0, 2**31)``; or the seed of a run, from which
            they are derived as ``level_seeds(seed, "train", num_envs)``.
        backend: see :func:`resolve_backend`.
        num_threads: threads of EnvPool. Results do not depend on it.
        view: what an agent can read, if there is one already. Anything else that an environment
            shows it ends in :class:`envs.EnvironmentFailed`. Default: what the environment says.

    Raises:
        ValueError: if an argument is outside its range, the backend cannot run the task, no agent
            can be trained in it, or it has a view of another size than ``view``.

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
        env = _make(task, chosen, seeds, num_threads, view)
    except (TypeError, AssertionError, RuntimeError) as error:  # such as an unknown argument
        if is_builtin(task.id) and not (task.gym_kwargs or task.envpool_kwargs or task.wrappers):
            raise
        cause = message_of(error)
        raise ValueError(
            f"environment {task.id!r} cannot be made with its arguments on {chosen}: {cause}."
        ) from None
    if view is not None and not _same_form(env.view, view):
        env.close()
        raise ValueError(
            f"{task.id} shows its agent {_size(env.view)}; this one sees {_size(view)}."
        )
    return env


def _make(
    task: Task, backend: BackendName, seeds: list[int], num_threads: int, view: AnyView | None
) -> VectorEnv:
    if backend == "envpool":
        from envs.backends.envpool_backend import EnvPoolVectorEnv

        if view and _same_form(view, STOCK_VIEW) and not view.holds(STOCK_VIEW):
            raise ValueError(
                f"{task.id} shows its agent what this one cannot read: {STOCK_VIEW}, not {view}."
            )
        return EnvPoolVectorEnv(task, seeds, num_threads)
    from envs.backends.gymnasium_backend import GymnasiumVectorEnv

    return GymnasiumVectorEnv(task, seeds, view=view)


def _same_form(one: AnyView, other: AnyView) -> bool:
    if isinstance(one, Layout) or isinstance(other, Layout):
        return one == other
    return one.shape == other.shape


def _size(view: AnyView) -> str:
    return str(view) if isinstance(view, Layout) else f"{view.width}x{view.height} cells"


def require_makeable(
    task: Task | str,
    backend: BackendChoice = "auto",
    actions: Sequence[int] | None = None,
    parts: Collection[str] = (),
    view: AnyView | None = None,
) -> BackendName:
    """The backend that will run a task, after seeing that it can.

    An environment is made, and started, where only that can tell: of a class that is not minigrid's
    own, with arguments, or if it has to have actions.

    Args:
        task: a task or its gymnasium id.
        backend: see :func:`resolve_backend`.
        actions: numbers of actions that it must have, in MiniGrid's order.
        parts: what an observation must hold besides the view: ``"direction"``, ``"mission"``.
        view: see :func:`make_vector_env`.

    Raises:
        ValueError: as :func:`make_vector_env`, or if the environment fails when it is started, or
            lacks one of the actions or parts.

    >>> require_makeable("MiniGrid-DoorKey-5x5-v0", "gymnasium")
    'gymnasium'
    """
    task = _as_task(task)
    chosen = resolve_backend(task, backend)
    known = _is_known(task)
    if known and not actions and (view is None or view.holds(STOCK_VIEW)):
        return chosen
    with make_vector_env(task, 1, [0], chosen, view=view) as env:
        if not known:
            try:
                env.reset()
            except EnvironmentFailed as error:
                raise ValueError(str(error)) from error
    names = action_names(actions or ())
    if actions and env.actions.kind != "discrete":
        raise ValueError(f"actions cannot be chosen from: {task.id} has {env.actions}.")
    if actions and (max(actions) >= env.num_actions or not set(names) <= set(env.action_names)):
        raise ValueError(
            f"actions must be of those that {task.id} has, {', '.join(env.action_names)}; "
            f"got {', '.join(names)}."
        )
    for part in parts:
        if part in env.missing:
            raise ValueError(f"{task.id} gives no {part}, which the agent is to read.")
    return chosen


def _is_known(task: Task) -> bool:
    """Whether it is one of minigrid's own environments as they come."""
    given = task.gym_kwargs or task.envpool_kwargs or task.wrappers
    return is_stock(task.id) and not given


def view_of(task: Task | str, backend: BackendChoice = "auto") -> AnyView:
    """The view that agents of a task have; makes an environment.

    Raises:
        ValueError: as :func:`make_vector_env`.

    >>> view_of("MiniGrid-DoorKey-5x5-v0")
    View(width=7, height=7, categories=(11, 6, 4))
    """
    with make_vector_env(task, 1, [0], backend) as env:
        return env.view


def actions_of(task: Task | str, backend: BackendChoice = "auto") -> ActionSpace:
    """The actions of a task; makes an environment.

    Raises:
        ValueError: as :func:`make_vector_env`.

    >>> str(actions_of("MiniGrid-DoorKey-5x5-v0"))
    '7 actions'
    """
    with make_vector_env(task, 1, [0], backend) as env:
        return env.actions


def make_drawable_env(
    task: Task | str, seed: int, view: AnyView | None = None
) -> GymnasiumVectorEnv:
    """Make one environment on gymnasium whose frames can be drawn, for recording an episode.

    Args:
        task: a task or its gymnasium id.
        seed: seed of its levels.
        view: see :func:`make_vector_env`.

    Raises:
        ValueError: if the task cannot run.

    >>> with make_drawable_env("MiniGrid-DoorKey-5x5-v0", 0) as env:
    ...     _ = env.reset()
    ...     env.frame().shape
    (160, 160, 3)
    """
    task = _as_task(task)
    resolve_backend(task, "gymnasium")
    from envs.backends.gymnasium_backend import GymnasiumVectorEnv

    return GymnasiumVectorEnv(task, [seed], drawable=True, view=view)


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
    if task.id.startswith(_WFC_PREFIX) and not task.wrappers:
        return False  # EnvPool runs these also where gymnasium, used below, lacks what they need
    return _mission_varies(task.id, json.dumps(dict(task.gym_kwargs)), task.wrappers, samples)


@lru_cache(maxsize=256)
def _mission_varies(id: str, gym_kwargs: str, wrappers: tuple[str, ...], samples: int) -> bool:
    missions = _missions(Task(id=id, gym_kwargs=json.loads(gym_kwargs), wrappers=wrappers), samples)
    first = next(missions)
    return any(mission != first for mission in missions)


def _missions(task: Task, samples: int) -> Iterator[str]:
    """The missions of some levels."""
    from envs.backends.gymnasium_backend import make_env, quiet

    env = make_env(task)
    try:
        for seed in range(samples):
            with quiet(task):
                mission: str = env.reset(seed=seed)[0].get("mission", "")
            yield mission
    finally:
        env.close()


def require_missions_differ(task: Task | str, *, samples: int = 32) -> None:
    """Refuse a task whose missions an agent cannot tell apart.

    Agents know the words of minigrid's own missions (:data:`envs.VOCABULARY`) and no others.

    Raises:
        ValueError: in one line, if two missions are the same to them.

    >>> require_missions_differ("BabyAI-GoToLocal-v0")
    """
    task = _as_task(task)
    if is_builtin(task.id) and not task.wrappers:
        return
    seen: dict[bytes, str] = {}
    for mission in _missions(task, samples):
        tokens = encode_mission(mission)
        other = seen.setdefault(tokens.tobytes(), mission)
        if words_of(other) != words_of(mission):
            why = "they hold words it does not know" if UNKNOWN in tokens else "they are too long"
            raise ValueError(
                f"missions of {task.id} are the same to an agent, {why}: {other!r} and "
                f"{mission!r}. Use words of envs.VOCABULARY, or train with --mission off."
            )


def _as_task(task: Task | str) -> Task:
    return get_task(task) if isinstance(task, str) else task
