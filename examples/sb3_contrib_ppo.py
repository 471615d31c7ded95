"""RecurrentPPO of sb3-contrib with RIM_LSTM in place of nn.LSTM.

The policy of sb3-contrib names nn.LSTM in its constructor, so a subclass replaces the two layers it
made and makes the optimizer again, for it held the parameters of the replaced ones. Nothing else
changes: rollouts, resets at episode starts, training, saving and loading are sb3-contrib's own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.ppo_recurrent import MlpLstmPolicy
from stable_baselines3.common.type_aliases import Schedule

from rims import RIM_LSTM


class MlpRimPolicy(MlpLstmPolicy):
    """MlpLstmPolicy with mechanisms; ``lstm_hidden_size`` is their total size."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        num_rims: int = 4,
        k: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        for name in ("lstm_actor", "lstm_critic"):
            lstm = getattr(self, name)
            if lstm is not None:
                sizes = (lstm.input_size, lstm.hidden_size, num_rims, k, lstm.num_layers)
                setattr(self, name, RIM_LSTM(*sizes, **self.lstm_kwargs))
        self.optimizer = self.optimizer_class(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )


def act(model: RecurrentPPO, steps: int = 30) -> list[int]:
    """The greedy actions of ``model`` on CartPole."""
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=7)
    state, start, actions = None, np.ones(1, dtype=bool), []
    for _ in range(steps):
        action, state = model.predict(observation, state, start, deterministic=True)
        actions.append(int(action))
        observation, _, terminated, truncated, _ = env.step(action)
        start = np.array([terminated or truncated])
        if start[0]:
            observation, _ = env.reset()
    return actions


def main(total_steps: int = 512) -> tuple[list[int], list[int]]:
    """Train, save, load; the actions before and after."""
    model = RecurrentPPO(
        MlpRimPolicy,
        "CartPole-v1",
        n_steps=128,
        n_epochs=2,
        policy_kwargs={"lstm_hidden_size": 32},
        seed=0,
        device="cpu",
    )
    model.learn(total_steps)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "agent")
        loaded = RecurrentPPO.load(Path(folder) / "agent", device="cpu")
    print(model.policy.lstm_actor)
    print("trained:", act(model))
    print("loaded: ", act(loaded))
    return act(model), act(loaded)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--total-steps", type=int)
    main(**vars(parser.parse_args()))
