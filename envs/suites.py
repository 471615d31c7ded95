"""The generalization suites: train on one task, evaluate on tasks never trained on.

Pure data. Nothing here makes an environment; :mod:`envs.vector` does. Suites of one's own are TOML
files; :mod:`envs.suite_file` reads them, and finds a suite by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, get_args

from envs.ids import Success, known_ids, load_id
from envs.wrappers import wrapper_class
from lab.words import did_you_mean

__all__ = ["SUITES", "Suite", "Task", "get_task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One environment, and how each backend makes it.

    Args:
        id: gymnasium id, also in its form ``module:Id`` where importing the module registers it.
            The public name of the task; the same task in every suite.
        gym_kwargs: extra keyword arguments of ``gymnasium.make``.
        envpool_id: id under which EnvPool makes the same task. Default: ``id``.
        envpool_kwargs: extra keyword arguments of ``envpool.make_gymnasium``.
        name: short label for tables. Default: ``id`` without module, ``MiniGrid-`` and ``-v0``.
        success: how success is known where the environment does not say: ``"reward"``, an episode
            that ends with a reward above 0 was one. Default: so in minigrid's own environments,
            and not at all in any other (:func:`envs.ids.success_rule`).
        wrappers: names of wrappers, the innermost first, see
            :func:`envs.wrappers.wrapper_class`. Such a task runs on gymnasium.

    Raises:
        ValueError: for another rule of success, an unknown wrapper, or if EnvPool is asked for
            another view size: most of them corrupt its memory, and the others have no effect.

    >>> Task(id="MiniGrid-DoorKey-8x8-v0").name
    'DoorKey-8x8'
    """

    id: str
    gym_kwargs: Mapping[str, Any] = field(default_factory=dict)
    envpool_id: str | None = None
    envpool_kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    success: Success = ""
    wrappers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for wrapper in self.wrappers:
            wrapper_class(wrapper)
        if "agent_view_size" in self.envpool_kwargs:
            raise ValueError(
                f"Task: agent_view_size must not be set for EnvPool; got it for {self.id!r}. "
                "Set it in gym_kwargs, and the task runs on gymnasium."
            )
        if self.success not in get_args(Success):
            raise ValueError(f"Task: success must be 'reward' or left out; got {self.success!r}.")
        if not self.name:
            plain = self.id.rpartition(":")[2].replace("/", "-")
            object.__setattr__(self, "name", plain.removeprefix("MiniGrid-").removesuffix("-v0"))


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A training task and the unseen tasks that measure generalization.

    Args:
        name: the name on the command line.
        description: one line.
        train: the task to train on.
        unseen: tasks for evaluation only. They may be parts of the training task, the hard ones.
        chance: success rate on the training task of an agent that has learned nothing of what the
            suite is about: random actions, unless the description says otherwise. None if unknown.
        preset: training hyperparameters to override, by field name of the training configuration.
    """

    name: str
    description: str
    train: Task
    unseen: tuple[Task, ...]
    chance: float | None = None
    preset: Mapping[str, object] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The training task, then the unseen ones."""
        return (self.train, *self.unseen)


# Where success is rare at first, an update needs many steps: over 2 048, the noise of advantages
# without any success among them moves the policy, and some runs never recover.
_LONG_ROLLOUTS: Mapping[str, object] = {"rollout_steps_per_env": 128, "minibatches": 16}

# To look back, an agent has to turn round by chance first: often, and with actions that do nothing
# left out.
_MEMORY: Mapping[str, object] = {
    "actions": "left,right,forward",
    "minibatches": 8,
    "gae_lambda": 0.98,
    "entropy_coefficient": 0.02,
}

_SUITES = (
    Suite(
        name="gotoredball",
        description="Go to the red ball; unseen: other objects in the room, grey ones, then all.",
        train=Task(id="BabyAI-GoToRedBallNoDists-v0"),
        unseen=(Task(id="BabyAI-GoToRedBallGrey-v0"), Task(id="BabyAI-GoToRedBall-v0")),
        chance=0.25,
        # The missions differ in "a" and "the" alone, so there is nothing to read.
        preset={"total_steps": 100_000, "mission": "off"},
    ),
    Suite(
        name="memory",
        description="Go to the object seen at the start; the corridor grows. Chance: guess which.",
        train=Task(id="MiniGrid-MemoryS9-v0"),
        unseen=(
            Task(id="MiniGrid-MemoryS11-v0"),
            Task(id="MiniGrid-MemoryS13-v0"),
            Task(id="MiniGrid-MemoryS13Random-v0"),
            Task(id="MiniGrid-MemoryS17Random-v0"),
        ),
        chance=0.5,
        preset={
            "total_steps": 1_000_000,
            "num_envs": 128,
            "rollout_steps_per_env": 64,
            **_MEMORY,
        },
    ),
    Suite(
        name="memoryrandom",
        description="As memory, trained on corridors of any length. Chance: look back, else guess.",
        train=Task(id="MiniGrid-MemoryS13Random-v0"),
        # S11 and S13 have corridors as long as two of the four trained ones, of seven, where
        # looking back fails.
        unseen=(
            Task(id="MiniGrid-MemoryS11-v0"),
            Task(id="MiniGrid-MemoryS13-v0"),
            Task(id="MiniGrid-MemoryS17Random-v0"),
        ),
        chance=0.71,  # 3 of 7 corridors, and half of the others
        preset={
            "total_steps": 5_000_000,
            "num_envs": 256,
            "rollout_steps_per_env": 32,
            **_MEMORY,
        },
    ),
    Suite(
        name="doorkey",
        description="Find a key, open the door, reach the goal; the room grows from 5x5 to 16x16.",
        train=Task(id="MiniGrid-DoorKey-5x5-v0"),
        unseen=(
            Task(id="MiniGrid-DoorKey-6x6-v0"),
            Task(id="MiniGrid-DoorKey-8x8-v0"),
            Task(id="MiniGrid-DoorKey-16x16-v0"),
        ),
        chance=0.08,
        preset={"total_steps": 150_000},
    ),
    Suite(
        name="empty",
        description="Reach the goal in an empty room that grows from 5x5 to 16x16.",
        train=Task(id="MiniGrid-Empty-Random-5x5-v0"),
        unseen=(
            Task(id="MiniGrid-Empty-Random-6x6-v0"),
            Task(id="MiniGrid-Empty-8x8-v0"),
            Task(id="MiniGrid-Empty-16x16-v0"),
        ),
        chance=0.51,
        preset={"total_steps": 50_000},
    ),
    Suite(
        name="oneroom",
        description="Pick up the only object of a room that grows from 8x8 to 20x20.",
        train=Task(id="BabyAI-OneRoomS8-v0"),
        unseen=(
            Task(id="BabyAI-OneRoomS12-v0"),
            Task(id="BabyAI-OneRoomS16-v0"),
            Task(id="BabyAI-OneRoomS20-v0"),
        ),
        chance=0.13,
        preset={"total_steps": 120_000},
    ),
    Suite(
        name="multiroom",
        description="Walk through a chain of rooms to the goal; from 2 small rooms to 4 and 6.",
        train=Task(id="MiniGrid-MultiRoom-N2-S4-v0"),
        # N4-S5-v0 has six rooms by mistake; v1 has four.
        unseen=(Task(id="MiniGrid-MultiRoom-N4-S5-v1"), Task(id="MiniGrid-MultiRoom-N6-v0")),
        chance=0.02,
        preset={"total_steps": 150_000},
    ),
    Suite(
        name="keycorridor",
        description="Find the key to a locked room and fetch the object; more rooms, then larger.",
        train=Task(id="MiniGrid-KeyCorridorS3R1-v0"),
        unseen=(Task(id="MiniGrid-KeyCorridorS3R2-v0"), Task(id="MiniGrid-KeyCorridorS3R3-v0")),
        chance=0.06,
        # A level has one ball and one key: the colours in the mission tell nothing.
        preset={"total_steps": 500_000, "mission": "off", **_LONG_ROLLOUTS},
    ),
    Suite(
        name="crossing",
        description="Reach the goal through a gap in each wall; from 1 wall to 2, 3 and 5.",
        train=Task(id="MiniGrid-SimpleCrossingS9N1-v0"),
        unseen=(
            Task(id="MiniGrid-SimpleCrossingS9N2-v0"),
            Task(id="MiniGrid-SimpleCrossingS9N3-v0"),
            Task(id="MiniGrid-SimpleCrossingS11N5-v0"),
        ),
        chance=0.05,
        preset={"total_steps": 800_000, **_LONG_ROLLOUTS},
    ),
)

SUITES: Mapping[str, Suite] = MappingProxyType({suite.name: suite for suite in _SUITES})
"""The suites by name."""


def get_task(id: str) -> Task:
    """The task of a gymnasium id: from the suites, else any environment that is registered.

    Whether agents can be trained in it is seen where one is made, by its spaces.

    Args:
        id: such as ``"MiniGrid-DoorKey-5x5-v0"``, or ``"module:Id"`` for an environment that is
            registered when the module is imported, which is done here.

    Raises:
        ValueError: if no such environment is registered; the message names the closest one. If
            the module cannot be imported.

    >>> get_task("MiniGrid-MultiRoom-N4-S5-v1").name
    'MultiRoom-N4-S5-v1'
    """
    for suite in SUITES.values():
        for task in suite.tasks:
            if task.id == id:
                return task
    name, known = load_id(id), known_ids()
    if name not in known:
        otherwise = "; it is not registered with gymnasium. One of a module of yours is module:Id."
        hint = did_you_mean(name, known, otherwise)
        raise ValueError(f"unknown environment {id!r}{hint} 'rims suites' lists the suites.")
    return Task(id=id)
