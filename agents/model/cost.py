"""The cost of a step of an agent: multiply-adds of its matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.model.observations import AnyObservations, MixedObservations, Observations
from agents.model.policy import RecurrentActorCritic
from envs import MISSION_LENGTH, Layout
from rims import scan_path


class Cost(NamedTuple):
    """Multiply-adds of one environment's step, forward."""

    core: int
    total: int  # with encoder and heads


def multiply_adds(policy: RecurrentActorCritic) -> Cost:
    """Count the multiply-adds of the matrix products in one step of one environment.

    Counted is what is computed: a RIM layer's inactive mechanisms too, and the encoder's one-hot
    input as the dense vector it is. A mission is counted at its full length. Point-wise operations
    are not counted, nor NFM's attention, nor what a user's own core computes in operators that
    torch does not know.

    Args:
        policy: the agent, on any device.

    Returns:
        ``Cost(core, total)``.

    Example:
        >>> from agents.config import PPOConfig
        >>> config = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="lstm", hidden_size=32)
        >>> policy = RecurrentActorCritic(config, 7, read_mission=False)
        >>> multiply_adds(policy)  # 4 * 32 * (128 + 32); 1029 * 128 and 32 * (7 + 1) more
        Cost(core=20480, total=152448)
    """
    core = policy.core
    device, dtype = core.like.device, core.like.dtype
    state = policy.initial_state(1)
    reset = torch.zeros(1, 1, dtype=torch.bool, device=device)
    observations = _observations(policy, device)
    features = torch.zeros(1, 1, policy.encoder.linear.out_features, dtype=dtype, device=device)
    return Cost(
        core=_count(lambda: core(features, state, reset)),
        total=_count(lambda: policy(observations, state, reset)),
    )


def _observations(policy: RecurrentActorCritic, device: torch.device) -> AnyObservations:
    """One observation of one environment."""
    view = policy.view
    words = torch.ones(1, 1, MISSION_LENGTH, dtype=torch.int64, device=device)  # 0 is padding
    if isinstance(view, Layout):
        return MixedObservations(
            torch.zeros(1, 1, view.vector_size, device=device),
            torch.zeros(1, 1, view.pixels, dtype=torch.uint8, device=device),
            words,
        )
    return Observations(
        torch.zeros(1, 1, *view.shape, dtype=torch.uint8, device=device),
        torch.zeros(1, 1, dtype=torch.int64, device=device),
        words,
    )


def _count(call: Callable[[], Any]) -> int:
    """Multiply-adds of one call; torch counts each as two operations."""
    counter = FlopCounterMode(display=False, custom_mapping=_FUSED)
    # Any other way through a RIM layer computes the same where the counter cannot see it.
    with torch.no_grad(), scan_path("reference"), counter:
        call()
    return counter.get_total_flops() // 2


def _mkldnn_rnn_layer(input: Any, weight_ih: Any, weight_hh: Any, *rest: Any, **named: Any) -> int:
    """Operations of one layer of nn.LSTM on the CPU, from the shapes of its arguments."""
    products: int = math.prod(input[:-1]) * (math.prod(weight_ih) + math.prod(weight_hh))
    return 2 * products


def _cudnn_rnn(input: Any, weights: Any, *rest: Any, **named: Any) -> int:
    """Operations of nn.LSTM or nn.GRU on CUDA, all layers; biases are no matrices."""
    products: int = math.prod(input[:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)
    return 2 * products


#: Layers that torch runs as one operator, of which its counter knows nothing.
_FUSED = {
    torch.ops.aten.mkldnn_rnn_layer: _mkldnn_rnn_layer,
    torch.ops.aten._cudnn_rnn: _cudnn_rnn,
}
