"""A lower bound on the memory of training, known before anything is made."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from agents.config import PPOConfig
from agents.model.policy import count_parameters
from agents.model.view_maps import map_features
from envs import STOCK_VIEW
from lab.core_modules import make_layer
from lab.cores import CORE_NAMES
from lab.running.memory import require_memory, require_memory_at_once
from lab.running.ranks import local_device, processes_here

_NUMBER = 4  # bytes, of float32

#: A weight, its gradient and Adam's two means.
_COPIES = 4

#: An observation's bytes: the view, of no less than MiniGrid's usual size, and eight for the
#: direction. While a rollout is put together they are there twice.
_OBSERVATION = 2 * (math.prod(STOCK_VIEW.shape) + 8)

_CURE = "give less of --num-envs, --rollout-steps-per-env, --hidden-size or --encoder-size"


def bytes_of_weights(config: PPOConfig) -> float:
    """Lower bound on bytes for core and encoder, with their gradients and optimizer state.

    Of a core with an import path nothing is known.

    Example:
        >>> bytes_of_weights(PPOConfig(env="MiniGrid-Empty-5x5-v0", core="none")) / 1e6
        2.37...
    """
    if config.core not in CORE_NAMES:
        return 0.0
    try:
        with torch.device("meta"):  # there tensors have a shape and no content
            core = count_parameters(make_layer(config.encoder_size, config))
    except (RuntimeError, TypeError):  # of torch, for sizes beyond any memory
        return math.inf
    view = STOCK_VIEW
    read = view.cells * sum(view.categories)
    if config.encoder != "linear":
        read = map_features(view.width, view.height)
    return float(_COPIES * _NUMBER * (core + read * config.encoder_size))


def bytes_of_rollout(config: PPOConfig) -> float:
    """Lower bound on bytes for an update's observations and a minibatch's core outputs.

    Example:
        >>> bytes_of_rollout(PPOConfig(env="MiniGrid-Empty-5x5-v0")) / 1e6
        0.89...
    """
    outputs = config.minibatch_envs * config.hidden_size * _NUMBER
    return float(config.rollout_steps_per_env * (config.num_envs * _OBSERVATION + outputs))


def require_fits(config: PPOConfig, processes: int = 1) -> None:
    """Refuse a run, trained by ``processes`` processes, for which there is no memory.

    Raises:
        ValueError: in one line.
    """
    here = processes_here(processes)
    needed = here * bytes_of_weights(config) + here / processes * bytes_of_rollout(config)
    device = torch.device(local_device(config.device))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    require_memory(needed, "training with these settings", _CURE, free)


def require_all_fit(configs: Sequence[PPOConfig], jobs: int) -> None:
    """Refuse runs, ``jobs`` of which train at a time, for which there is no memory.

    Args:
        configs: of the runs; those of one core differ in their seed alone.
        jobs: runs at a time.

    Raises:
        ValueError: in one line.
    """
    needed = {}
    for config in {config.core: config for config in configs}.values():  # seeds need the same
        require_fits(config)
        on_cpu = config.device == "cpu"
        needed[config.core] = bytes_of_weights(config) + bytes_of_rollout(config) if on_cpu else 0.0
    require_memory_at_once([needed[config.core] for config in configs], jobs)
