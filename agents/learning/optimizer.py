"""Adam over all parameters as one vector."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import nn

from agents.config import PPOConfig
from lab.disk.manifest import is_finite_number

#: Parameters start at multiples of this many numbers, so that matrix products find them aligned.
_ALIGNMENT = 16


def flatten(module: nn.Module) -> nn.Parameter:
    """Move all parameters of ``module``, and their gradients, into one vector.

    A small network has some twenty parameters of a few thousand numbers each: clearing, clipping
    and stepping them one by one takes longer than the arithmetic. Afterwards every parameter is a
    view of the vector, and its gradient of the vector's. Clear gradients with
    ``set_to_none=False``, and do not move the module to another device or type.

    Args:
        module: is on its device already. Parameters that are not trained stay as they are.

    Returns:
        The vector, with gradient zero; gaps between parameters are zero and stay so.

    Raises:
        ValueError: if the parameters are of several types.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> flat = flatten(layer)
        >>> layer(torch.ones(3)).sum().backward()
        >>> flat.grad.sum()
        tensor(8.)
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    types = {p.dtype for p in parameters}
    if len(types) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        raise ValueError(f"the agent's parameters must be of one type; they are {names}.")
    lengths = [-(-p.numel() // _ALIGNMENT) * _ALIGNMENT for p in parameters]
    starts = accumulate(lengths, initial=0)
    flat = nn.Parameter(parameters[0].new_zeros(sum(lengths)))
    flat.grad = torch.zeros_like(flat)
    for parameter, start in zip(parameters, starts, strict=False):
        part = slice(start, start + parameter.numel())
        flat.data[part] = parameter.detach().flatten()
        parameter.data = flat.data[part].view_as(parameter)
        parameter.grad = flat.grad[part].view_as(parameter)
    return flat


def make_optimizer(policy: nn.Module, config: PPOConfig) -> torch.optim.Optimizer:
    """Adam (arXiv:1412.6980) as configured, over the flattened parameters of ``policy``."""
    return torch.optim.Adam(
        [flatten(policy)], lr=config.learning_rate, eps=config.adam_epsilon, fused=True
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give a new optimizer the state of one that was made with the same settings.

    Raises:
        ValueError: if the state is another's: of other settings but for the step size, which
            follows the schedule, or of parameters of other sizes.
    """
    before = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, made in zip(optimizer.param_groups, before, strict=True):
        if any(group[name] != made[name] for name in made.keys() - {"params", "lr"}):
            raise ValueError("the state of an optimizer with other settings")
        if not is_finite_number(group["lr"]):
            raise ValueError("a learning rate that is not a number")
        for parameter in group["params"]:
            for value in optimizer.state[parameter].values():
                if value.shape not in ((), parameter.shape):
                    raise ValueError("the state of other parameters")
