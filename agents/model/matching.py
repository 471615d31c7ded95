"""Cores of one size: the hidden size that gives one core as many parameters as another."""

from __future__ import annotations

import torch

from agents.config import PPOConfig
from agents.model.cores import RecurrentCore
from agents.model.policy import count_parameters
from lab.cores import CORE_NAMES
from lab.matching import matched


def matched_hidden_size(config: PPOConfig, reference: PPOConfig) -> int:
    """The hidden size with which the core of ``config`` has as many parameters as another.

    Parameters are those of the core alone; what it reads has ``config.encoder_size`` features.

    Args:
        config: the core whose size is sought; its own ``hidden_size`` does not count.
        reference: the core to be equal to.

    Returns:
        The hidden size.

    Raises:
        ValueError: as :func:`lab.matching.matched`.

    Example:
        >>> rim = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="rim_lstm", hidden_size=128)
        >>> lstm = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="lstm")
        >>> matched_hidden_size(lstm, rim)
        136
    """
    return matched(config, reference, core_parameters).hidden_size


def core_parameters(config: PPOConfig) -> int:
    """Trainable parameters of the core of ``config``, its learned initial state included."""
    # On this device tensors have a shape and no content; of a user's own class it may ask too much.
    with torch.device("meta" if config.core in CORE_NAMES else "cpu"):
        return count_parameters(RecurrentCore(config.encoder_size, config))
