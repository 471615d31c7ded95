"""The vector environment: its data, and the behaviour that all backends share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from envs.actions import ACTIONS, ActionSpace
from envs.ids import success_rule
from envs.layout import AnyView
from envs.suites import Task
from envs.view import STOCK_VIEW
from envs.wrappers import only_observations

__all__ = ["BackendName", "EnvironmentFailed", "Observation", "StepResult", "VectorEnv"]

BackendName = Literal["envpool", "gymnasium"]


class EnvironmentFailed(RuntimeError):
    """An environment raised, or gave what nothing can be learned from; one line says which."""


class Observation(NamedTuple):
    """Observations of E agents. Object, colour and state in ``image`` are categories."""

    image: NDArray[np.uint8]
    """(E, width, height, 3): object, colour and state index of each cell of the view, 7 by 7 cells
    in MiniGrid as it comes."""
    direction: NDArray[np.int64]
    """(E,): where the agent faces, 0 right, 1 down, 2 left, 3 up."""
    mission: NDArray[np.int64]
    """(E, L): token ids, see :func:`envs.encode_mission`."""


#: An :class:`Observation` or a :class:`envs.MixedObservation`: callers know their environment.
AnyObservation: TypeAlias = Any


class StepResult(NamedTuple):
    """One step of E environments. See :class:`VectorEnv` for what happens at an episode's end."""

    observation: AnyObservation
    reward: NDArray[np.float32]
    """(E,)"""
    terminated: NDArray[np.bool_]
    """(E,): the episode ended by the task's own rules, success or failure."""
    truncated: NDArray[np.bool_]
    """(E,): the episode was cut by the step limit. Never true together with ``terminated``, which
    wins where an environment says both."""
    valid: NDArray[np.bool_]
    """(E,): false where this step only reset the environment; its action was ignored."""
    episode_start: NDArray[np.bool_]
    """(E,): ``observation`` is the first of an episode. After a step this is ``~valid``."""
    success: NDArray[np.float32]
    """(E,): of an episode that ended with this step, 1 success, 0 failure, NaN not known: neither
    the environment nor a rule of the task says. Elsewhere it means nothing."""


class BackendStep(NamedTuple):
    """A step as a backend reports it."""

    observation: AnyObservation
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    told: NDArray[np.float32] | None = None
    """(E,): success in the environments' own words, NaN for none; None: no environment has one."""


class VectorEnv(ABC):
    """E copies of one task, stepped together; made by :func:`envs.make_vector_env`.

    Episode ends, on every backend (gymnasium calls it the next-step autoreset): the observation
    that comes with ``terminated`` or ``truncated`` is the last one of the finished episode, so its
    value, computed with the recurrent state carried on, is the bootstrap of a truncated episode.
    The next :meth:`step` ignores that environment's action and returns the first observation of
    the next episode with reward 0, neither flag set, ``valid`` false and ``episode_start`` true.
    Such a step is no transition: leave it out of losses, statistics and frame counts.

    ``terminated`` and ``truncated`` are what the environment says. Where it says both, as MiniGrid
    does for success on the very last step, it is ``terminated``. A failure without reward on the
    very last step (lava) is ``terminated`` on gymnasium, but EnvPool cannot tell it from the step
    limit and it is ``truncated`` there.

    Success is the environment's word: ``info["is_success"]`` or ``info["success"]`` at an episode's
    end. Where it has none, the task's rule decides (:attr:`Task.success`), if there is one.

    The first :meth:`reset` starts from the seeds; later ones continue with new levels.
    All arrays returned are the caller's own: no later step changes them.

    Attributes:
        task: the task that is run.
        backend: ``"envpool"`` or ``"gymnasium"``. The same seed gives different levels on the two.
        num_envs: E.
        actions: the space of actions.
        num_actions: single actions are integers in ``[0, num_actions)``; of others it is how many
            components they have.
        view: size of the agent's view and what its cells can hold; or the layout of observations,
            which then are :class:`envs.MixedObservation`.
        action_names: the environment's names of its actions.
        missing: parts of an observation that the environment does not give, ``"direction"`` and
            ``"mission"``; they are 0 and empty.
    """

    task: Task
    backend: BackendName
    num_envs: int
    actions: ActionSpace
    num_actions: int
    view: AnyView
    action_names: tuple[str, ...]
    missing: tuple[str, ...]

    def __init__(
        self,
        *,
        task: Task,
        backend: BackendName,
        num_envs: int,
        actions: ActionSpace,
        view: AnyView = STOCK_VIEW,
        names: tuple[str, ...] = ACTIONS,
        missing: tuple[str, ...] = (),
    ) -> None:
        self.task = task
        self.backend = backend
        self.num_envs = num_envs
        self.actions = actions
        self.num_actions = actions.length
        self.view = view
        self.action_names = names[: actions.length]
        self.missing = missing
        kept = only_observations(task.wrappers)
        self._by_reward = (task.success or (success_rule(task.id) if kept else "")) == "reward"
        self._started = False
        self._closed = False
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def reset(self) -> AnyObservation:
        """Start a new episode in every environment and return the first observations.

        Raises:
            RuntimeError: after :meth:`close`.
        """
        self._require_open("reset")
        observation = self._reset()
        self._started = True
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        return observation

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Apply one action per environment.

        Args:
            actions: integers (E,), each in ``[0, num_actions)``; of several numbers or continuous
                (E, components), within the space. Also where they will be ignored.

        Raises:
            RuntimeError: before the first :meth:`reset` or after :meth:`close`.
            ValueError: if ``actions`` is not such an array; no environment was stepped then.
        """
        self._require_open("step")
        if not self._started:
            raise RuntimeError("VectorEnv.step: called before reset(). Call reset() first.")
        self._check_actions(actions)
        episode_start = self._ended
        step = self._step(actions, episode_start)
        self._ended = step.terminated | step.truncated
        return StepResult(
            observation=step.observation,
            reward=step.reward,
            terminated=step.terminated,
            truncated=step.truncated & ~step.terminated,
            valid=~episode_start,
            episode_start=episode_start,
            success=self._success(step),
        )

    def close(self) -> None:
        """Free the environments. May be called twice."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _reset(self) -> AnyObservation:
        """Reset every environment."""

    @abstractmethod
    def _step(self, actions: NDArray[Any], episode_start: NDArray[np.bool_]) -> BackendStep:
        """Step with checked actions; ``episode_start`` (E,) says where this starts an episode."""

    @abstractmethod
    def _close(self) -> None:
        """Free the environments; called once."""

    def _success(self, step: BackendStep) -> NDArray[np.float32]:
        if not self._by_reward:
            unknown = np.full(self.num_envs, np.nan, dtype=np.float32)
            return unknown if step.told is None else step.told
        by_reward = (step.reward > 0).astype(np.float32)
        if step.told is None:
            return by_reward
        return np.where(np.isnan(step.told), by_reward, step.told)

    def _require_open(self, method: str) -> None:
        if self._closed:
            raise RuntimeError(f"VectorEnv.{method}: called after close(). Make a new one.")

    def _check_actions(self, actions: NDArray[Any]) -> None:
        if self.actions.kind != "discrete":
            self._check_components(actions)
            return
        # EnvPool aborts the whole process on an action out of range and truncates floats.
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "iu":
            kind = actions.dtype if isinstance(actions, np.ndarray) else type(actions).__name__
            raise ValueError(f"VectorEnv.step: actions must be a numpy integer array; got {kind}.")
        if actions.shape != (self.num_envs,):
            raise ValueError(
                f"VectorEnv.step: actions must have shape ({self.num_envs},), one per environment; "
                f"got {actions.shape}."
            )
        low, high = actions.min(), actions.max()
        if low < 0 or high >= self.num_actions:
            raise ValueError(
                f"VectorEnv.step: actions must lie in [0, {self.num_actions}); got {low} to {high}."
            )

    def _check_components(self, actions: NDArray[Any]) -> None:
        space, shape = self.actions, (self.num_envs, *self.actions.shape)
        kinds = "f" if space.kind == "continuous" else "iu"
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in kinds:
            kind = actions.dtype if isinstance(actions, np.ndarray) else type(actions).__name__
            raise ValueError(f"VectorEnv.step: actions must be a numpy array, {space}; got {kind}.")
        if actions.shape != shape:
            raise ValueError(
                f"VectorEnv.step: actions must have shape {shape}; got {actions.shape}."
            )
        low = np.array(space.low or 0, dtype=np.float32)
        high = np.array(space.high or np.array(space.sizes) - 1, dtype=np.float32)
        if not ((actions >= low) & (actions <= high)).all():  # also of NaN
            raise ValueError(f"VectorEnv.step: there are {space}; got others.")
