"""Cores of one size: the hidden size that gives one core as many parameters as another."""

from __future__ import annotations

from dataclasses import replace

import torch

from agents.config import CORE_NAMES, PPOConfig
from agents.model.cores import RecurrentCore
from agents.model.policy import count_parameters
from lab.matching import nearest_size


def matched_hidden_size(config: PPOConfig, reference: PPOConfig) -> int:
    """The hidden size with which the core of ``config`` has as many parameters as another.

    Parameters are those of the core alone; what it reads has ``config.encoder_size`` features.
    The counts are as near to each other as whole sizes allow (for cores with mechanisms, multiples
    of ``num_rims``). The core "none" has no recurrent parameters and keeps its size. A class with
    an import path is tried at sizes of all kinds; more of them must mean more parameters.

    Args:
        config: the core whose size is sought; its own ``hidden_size`` does not count.
        reference: the core to be equal to.

    Returns:
        The hidden size.

    Raises:
        ValueError: in one line, if the best is off by more than 2 %, if the reference has no
            recurrent parameters, or for an import path whose class cannot be used.

    Example:
        >>> rim = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="rim_lstm", hidden_size=128)
        >>> lstm = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="lstm")
        >>> matched_hidden_size(lstm, rim)
        136
    """
    if config.core == "none":
        return config.hidden_size
    if reference.core == "none":
        raise ValueError("core 'none' has no recurrent parameters that another could match.")
    target = core_parameters(reference)
    unit = config.num_rims if config.core in ("rim_lstm", "rim_gru") else 1

    def count(hidden_size: int) -> int:
        return core_parameters(replace(config, hidden_size=hidden_size))

    return nearest_size(count, target, unit, core=config.core, reference=reference.core)


def core_parameters(config: PPOConfig) -> int:
    """Trainable parameters of the core of ``config``, its learned initial state included."""
    # On this device tensors have a shape and no content; of a user's own class it may ask too much.
    with torch.device("meta" if config.core in CORE_NAMES else "cpu"):
        return count_parameters(RecurrentCore(config.encoder_size, config))
