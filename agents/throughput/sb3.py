"""One round of sb3-contrib's RecurrentPPO with the settings of ours, as near as they come.

Where the two differ, sb3-contrib has less to compute: its LSTM reads the 147 numbers of the view
as they are (minigrid's ImgObsWrapper), without an encoder before it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import time
from collections.abc import Sequence
from typing import Any

import minigrid  # noqa: F401  (registers its environments)
import numpy as np
import torch
from gymnasium import spaces
from minigrid.wrappers import ImgObsWrapper
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agents.config import PPOConfig
from agents.throughput.ours import Round, total
from envs import AnyObservation, Observation, VectorEnv, View, level_seeds, make_vector_env


def measure_sb3(
    config: PPOConfig, updates: int, *, own_environments: bool, own_policy: bool = False
) -> Round:
    """Train from the start and time ``updates`` updates after a first one that does not count.

    Args:
        config: settings; its core is not used.
        updates: how many.
        own_environments: step gymnasium environments in a DummyVecEnv, as users of sb3-contrib
            do; else those of our backend, through :class:`AdaptedEnv`.
        own_policy: MlpLstmPolicy as it comes; else of the sizes of ours.
    """
    torch.set_num_threads(config.threads)
    with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints when it rejects a level
        env = _make_own(config) if own_environments else _make_ours(config)
        model = make_model(config, env, own_policy=own_policy)
        clock = _Clock()
        steps = config.num_envs * config.rollout_steps_per_env
        # nothing is logged, nor is it by ours here
        model.learn((1 + updates) * steps, callback=clock, log_interval=updates + 2)
        env.close()
    # Collecting, updating, collecting, ..., updating: what lies between two times is one of them.
    spans = [later - earlier for earlier, later in itertools.pairwise(clock.times)]
    resets = env.resets if isinstance(env, AdaptedEnv) else [0] * (1 + updates)
    rounds = [
        Round(steps - reset, collecting, updating)
        for reset, collecting, updating in zip(resets, spans[::2], spans[1::2], strict=True)
    ]
    return total(rounds[1:])


def make_model(config: PPOConfig, env: VecEnv, *, own_policy: bool = False) -> RecurrentPPO:
    """RecurrentPPO with one LSTM that actor and critic share, and heads without hidden layers.

    With ``own_policy`` all of that is as MlpLstmPolicy has it: an LSTM of 256 features for each.
    """
    sizes = {
        "lstm_hidden_size": config.hidden_size,
        "n_lstm_layers": config.num_layers,
        "shared_lstm": True,
        "enable_critic_lstm": False,
        "net_arch": [],
    }
    optimizer = {"optimizer_kwargs": {"eps": config.adam_epsilon}}
    batch = config.num_envs * config.rollout_steps_per_env // config.minibatches
    return RecurrentPPO(
        "MlpLstmPolicy",
        env,
        learning_rate=config.learning_rate,
        n_steps=config.rollout_steps_per_env,
        batch_size=batch,
        n_epochs=config.epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.entropy_coefficient,
        vf_coef=config.value_coefficient,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        device="cpu",
        policy_kwargs=optimizer if own_policy else {**sizes, **optimizer},
    )


def _make_own(config: PPOConfig) -> VecEnv:
    return make_vec_env(
        config.task.id,
        config.num_envs,
        seed=config.seed,
        wrapper_class=ImgObsWrapper,
        env_kwargs=dict(config.task.gym_kwargs),
    )


def _make_ours(config: PPOConfig) -> AdaptedEnv:
    seeds = level_seeds(config.seed, "train", config.num_envs)
    env = make_vector_env(config.task, config.num_envs, seeds, config.backend, config.threads)
    return AdaptedEnv(env, config.rollout_steps_per_env)


class _Clock(BaseCallback):
    """Notes when collecting begins and ends, and the end of the last update."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def _note(self) -> None:
        self.times.append(time.perf_counter())

    def _on_rollout_start(self) -> None:
        self._note()

    def _on_rollout_end(self) -> None:
        self._note()

    def _on_training_end(self) -> None:
        self._note()

    def _on_step(self) -> bool:
        return True


def _image(observation: AnyObservation) -> NDArray[np.uint8]:
    assert isinstance(observation, Observation)  # other environments are refused before
    return observation.image


class AdaptedEnv(VecEnv):
    """Our vector environments for sb3-contrib: good for timing, not for learning.

    Ours reset in a step of its own, for which SB3 has no name. Here that step is one more of the
    next episode, which is not what an agent should learn from but costs what it would cost.

    Args:
        env: the environments to step.
        rollout_steps: after as many, :attr:`resets` gets its next entry.
    """

    def __init__(self, env: VectorEnv, rollout_steps: int) -> None:
        self._env = env
        self._rollout_steps = rollout_steps
        self._steps = 0
        self._actions: NDArray[np.int64] = np.zeros(env.num_envs, dtype=np.int64)
        self.resets: list[int] = []  # steps of each rollout that only reset an environment
        assert isinstance(env.view, View)
        space = spaces.Box(0, 255, env.view.shape, np.uint8)
        super().__init__(env.num_envs, space, spaces.Discrete(env.num_actions))

    def reset(self) -> NDArray[np.uint8]:
        """Start every environment."""
        return _image(self._env.reset())

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Take note of the actions."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Step, with the infos that SB3 reads at the end of an episode."""
        if self._steps % self._rollout_steps == 0:
            self.resets.append(0)
        self._steps += 1
        step = self._env.step(self._actions)
        self.resets[-1] += int((~step.valid).sum())
        image, done = _image(step.observation), step.terminated | step.truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for env in np.flatnonzero(done):
            infos[env] = {
                "terminal_observation": image[env],
                "TimeLimit.truncated": bool(step.truncated[env]),
            }
        return image, step.reward, done, infos

    def close(self) -> None:
        """Free the environments."""
        self._env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """There is none but what SB3 asks every environment for: how it is drawn."""
        if attr_name != "render_mode":
            raise AttributeError(attr_name)
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """There is nothing to set."""
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kw: Any) -> list[Any]:
        """There is no method of single environments."""
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No environment is wrapped."""
        return [False] * self.num_envs

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """They are not drawn."""
        return [None] * self.num_envs
