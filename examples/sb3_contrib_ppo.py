"""RecurrentPPO of sb3-contrib with RIM_LSTM in place of nn.LSTM.

The policy of sb3-contrib names nn.LSTM in its constructor, so a subclass replaces the two layers it
made, and makes the optimizer again, which held the parameters of the replaced ones. All else is
sb3-contrib's own: rollouts, resets at the starts of episodes, training, saving and loading.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

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
            if lstm is not None:  # a policy may go without the critic's
                sizes = (lstm.input_size, lstm.hidden_size, num_rims, k, lstm.num_layers)
                setattr(self, name, RIM_LSTM(*sizes, **self.lstm_kwargs))
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )


def act(model: RecurrentPPO) -> tuple[list[int], Any]:
    """Greedy actions over one fixed sequence of observations, and the state after it."""
    actions, state = [], None
    for observation in np.random.default_rng(0).uniform(-2, 2, (20, 4)):
        action, state = model.predict(observation, state, deterministic=True)
        actions.append(int(action))
    return actions, state


def main(total_steps: int = 384) -> tuple[RecurrentPPO, RecurrentPPO]:
    """Train, save and load an agent; the trained and the loaded one."""
    options = {"lstm_hidden_size": 32, "num_rims": 4, "k": 3}
    model = RecurrentPPO(
        MlpRimPolicy, "CartPole-v1", n_steps=128, policy_kwargs=options, seed=0, device="cpu"
    )
    model.learn(total_steps)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "agent.zip")
        loaded = RecurrentPPO.load(Path(folder) / "agent.zip", device="cpu")
    print(loaded.policy.lstm_actor)
    (actions, state), (loaded_actions, loaded_state) = act(model), act(loaded)
    print("actions, trained:", actions)
    print("actions, loaded: ", loaded_actions)
    print("states equal:", np.array_equal(state, loaded_state))
    return model, loaded


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--total-steps", type=int)
    main(**vars(parser.parse_args()))
