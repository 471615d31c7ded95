"""Vector environments on EnvPool's C++ MiniGrid: some 20 times faster, where it can be installed.

EnvPool is optional, so it is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.actions import ActionSpace
from envs.backends.base import BackendStep, Observation, VectorEnv
from envs.ids import is_builtin
from envs.mission import MISSION_LENGTH, encode_mission
from envs.suites import Task

__all__ = ["EnvPoolVectorEnv", "why_not"]

#: EnvPool 1.2.5 draws the position of a room's entry from one place too many. One time in (size of
#: the room - 1) it is a corner, and the door leads into a wall: a third of the levels of N2-S4.
_MULTIROOM_PREFIX = "MiniGrid-MultiRoom-"


def why_not(task: Task) -> str | None:
    """Why EnvPool cannot run a task, in words; None if it can. Makes no environment."""
    try:
        import envpool
    except ImportError:
        return "EnvPool is not installed"
    if (task.envpool_id or task.id).startswith(_MULTIROOM_PREFIX):
        return "many levels of its MultiRoom cannot be solved"
    if task.wrappers:
        return "wrappers are of gymnasium's environments"
    if "agent_view_size" in task.gym_kwargs:
        return "its agents see 7x7 cells whatever agent_view_size is"
    if task.gym_kwargs and task.envpool_id is None and not task.envpool_kwargs:
        return f"EnvPool has no counterpart of the arguments of {task.id!r}"
    if (task.envpool_id or task.id) not in envpool.list_all_envs():
        return f"EnvPool does not know {task.id!r}"
    if not is_builtin(task.envpool_id or task.id):  # also an id of minigrid's, registered anew
        return f"what EnvPool calls {task.envpool_id or task.id!r} is not what minigrid has there"
    return None


class EnvPoolVectorEnv(VectorEnv):
    """E environments in one EnvPool; see :class:`envs.VectorEnv`.

    A pool must be made in the process that uses it: one made before a fork hangs in the child.

    Args:
        task: the task to run.
        seeds: one seed per environment, each in ``[0, 2**31)``.
        num_threads: threads that step. Results do not depend on it.
    """

    def __init__(self, task: Task, seeds: Sequence[int], num_threads: int) -> None:
        import envpool

        self._envs = envpool.make_gymnasium(
            task.envpool_id or task.id,
            num_envs=len(seeds),
            seed=list(seeds),
            num_threads=num_threads,
            **task.envpool_kwargs,
        )
        super().__init__(
            task=task,
            backend="envpool",
            num_envs=len(seeds),
            actions=ActionSpace.discrete(int(self._envs.action_space.n)),
        )
        self._mission = np.zeros((len(seeds), MISSION_LENGTH), dtype=np.int64)  # (E, L)

    def _reset(self) -> Observation:
        observation, _ = self._envs.reset()
        return self._observe(observation, np.ones(self.num_envs, dtype=np.bool_))

    def _step(
        self, actions: NDArray[np.integer[Any]], episode_start: NDArray[np.bool_]
    ) -> BackendStep:
        observation, reward, terminated, truncated, _ = self._envs.step(actions.astype(np.int32))
        # MiniGrid sets both flags if the last step succeeds; of these EnvPool reports a truncation
        # only. Its tasks give a reward at the end alone, so a cut episode with one was a success.
        return BackendStep(
            observation=self._observe(observation, episode_start),
            reward=reward,
            terminated=terminated | (truncated & (reward != 0)),
            truncated=truncated,
        )

    def _close(self) -> None:
        self._envs.close()

    def _observe(
        self, observation: dict[str, NDArray[Any]], episode_start: NDArray[np.bool_]
    ) -> Observation:
        # A mission changes only where an episode starts: read those rows, keep the other tokens.
        for env in np.flatnonzero(episode_start):
            text = observation["mission"][env].tobytes().split(b"\0", 1)[0].decode()
            self._mission[env] = encode_mission(text)
        return Observation(
            image=observation["image"],  # (E, 7, 7, 3), a fresh buffer at every step
            direction=observation["direction"].astype(np.int64),  # (E,)
            mission=self._mission.copy(),  # (E, L)
        )
