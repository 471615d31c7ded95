"""RIM_LSTM and RIM_GRU inside TorchRL's LSTMModule and GRUModule, fed by a collector.

The collector steps a recurrent policy through CartPole; episodes end in the middle of its batches
and ``is_init`` marks the starts. The same module then runs over whole batches for a loss, where
TorchRL splits every row at ``is_init``. Both ways must give the same outputs.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torchrl.collectors import Collector
from torchrl.envs import Compose, GymEnv, InitTracker, TransformedEnv
from torchrl.modules import GRUModule, LSTMModule, OneHotCategorical, ProbabilisticActor
from torchrl.modules import set_recurrent_mode

from rims import RIM_GRU, RIM_LSTM


def main() -> None:
    torch.manual_seed(0)
    memory=LSTMModule(lstm=RIM_LSTM(4,24,4,3,batch_first=True),in_key="observation",out_key="features")
    head=TensorDictModule(nn.Linear(24,2),["features"],["logits"])
    policy=ProbabilisticActor(TensorDictSequential(memory,head),in_keys=["logits"],out_keys=["action"],distribution_class=OneHotCategorical)
    env=TransformedEnv(GymEnv("CartPole-v1"),Compose(InitTracker(),memory.make_tensordict_primer()))
    c=Collector(env,policy,frames_per_batch=64,total_frames=192)
    for d in c:
        print(d)
        with set_recurrent_mode(True):
            print(d["is_init"].sum())
            try:
                y=memory(d.select(*memory.in_keys))["features"]
                print((y-d["features"]).abs().max())
            except TypeError as e: print(e)
    c.shutdown()
main()
