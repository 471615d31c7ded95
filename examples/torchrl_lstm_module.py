"""RIM_LSTM and RIM_GRU inside TorchRL's LSTMModule and GRUModule.

A collector steps a recurrent policy through CartPole; episodes end inside its batches and `is_init`
marks the starts. For a loss the same module runs over a whole batch, which TorchRL splits at
`is_init`. Stepping, running whole and splitting by hand must give the same features.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl import collectors, envs, modules
from torchrl.objectives.value.functional import reward2go

from rims import RIM_GRU, RIM_LSTM


def split_difference(memory: Any) -> float:
    """Largest difference between one run over resets and one run per piece between them."""
    is_init = torch.zeros(2, 9, 1, dtype=torch.bool)
    is_init[:, 5] = True
    data = TensorDict(observation=torch.randn(2, 9, 4), is_init=is_init, batch_size=[2, 9])
    with modules.set_recurrent_mode(True), torch.no_grad():
        whole = memory(data.clone())["features"]
        pieces = [memory(piece.clone())["features"] for piece in (data[:, :5], data[:, 5:])]
    return float((whole - torch.cat(pieces, 1)).abs().max())


def main(batches: int = 3, updates: int = 10) -> dict[str, float]:
    """Collect, compare and train; the differences, the first and the last loss."""
    torch.manual_seed(0)
    keys = {"in_key": "observation", "out_key": "features"}
    gru = modules.GRUModule(gru=RIM_GRU(4, 24, 4, 3, batch_first=True), **keys)
    # was: modules.LSTMModule(lstm=nn.LSTM(4, 24, batch_first=True), **keys)
    memory = modules.LSTMModule(lstm=RIM_LSTM(4, 24, 4, 3, batch_first=True), **keys)
    head = TensorDictModule(nn.Linear(24, 2), ["features"], ["logits"])
    policy = modules.ProbabilisticActor(
        TensorDictSequential(memory, head),
        in_keys=["logits"],
        distribution_class=modules.OneHotCategorical,
    )
    start = envs.Compose(envs.InitTracker(), memory.make_tensordict_primer())
    env = envs.TransformedEnv(envs.GymEnv("CartPole-v1"), start)
    env.set_seed(0)
    value = nn.Linear(24, 1)
    optimizer = torch.optim.Adam([*memory.parameters(), *value.parameters()], lr=0.01)

    results = {"split_lstm": split_difference(memory), "split_gru": split_difference(gru)}
    resets, stepped, losses = 0, [], []
    for batch in collectors.Collector(env, policy, frames_per_batch=64, total_frames=64 * batches):
        resets += int(batch["is_init"][1:].sum())
        target = reward2go(batch["next", "reward"], batch["next", "done"], gamma=0.9)
        for update in range(updates):
            with modules.set_recurrent_mode(True):
                features = memory(batch.select(*memory.in_keys))["features"]
            if update == 0:  # the weights are still those that collected
                stepped.append(float((features.detach() - batch["features"]).abs().max()))
            loss = (value(features) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    results |= {"resets": resets, "stepped": max(stepped), "first": losses[0], "last": losses[-1]}
    for name, number in results.items():
        print(f"{name:10} {number:.2g}")
    return results


if __name__ == "__main__":
    main()
