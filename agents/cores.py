"""Recurrent cores by name, all used through the contract of nn.LSTM."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from agents.config import PPOConfig
from rims import RIM_GRU, RIM_LSTM

#: State of a core: one tensor (layers, E, H), or two for LSTMs.
CoreState = tuple[Tensor, ...]


class Memoryless(nn.Module):
    """The control without memory: one layer, the same output size, an empty state."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, hidden_size)

    def forward(self, input: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        """Map (T, B, I) to (T, B, H); the state comes back as it was."""
        return self.linear(input).tanh(), hx


class RecurrentCore(nn.Module):
    """One interface over every core: sequences in which episodes end and begin.

    Args:
        name: see :data:`CORES`.
        input_size: features of the input.
        config: sizes.

    Shape:
        ``(T, E, I), state, reset (T, E) -> (T, E, H), state``
    """

    def __init__(self, input_size: int, config: PPOConfig) -> None:
        super().__init__()
        self.module = CORES[config.core](input_size, config)
        self.output_size = config.hidden_size
        initialize(self.module)
        self.handles_reset = isinstance(self.module, RIM_LSTM | RIM_GRU)
        self.state_sizes = _STATE_SIZES[config.core](config)
        learns_start = config.learned_initial_state and not self.handles_reset
        starts = [torch.zeros(size) for size in self.state_sizes if size] if learns_start else []
        self.starts = nn.ParameterList(starts)

    def initial_state(self, num_envs: int) -> CoreState:
        """The state before a first observation; what it holds does not count, its reset does."""
        like = next(self.parameters())
        return tuple(like.new_zeros(1, num_envs, size) for size in self.state_sizes)

    def forward(self, input: Tensor, state: CoreState, reset: Tensor) -> tuple[Tensor, CoreState]:
        """Run the sequence; the state starts anew before every step where ``reset`` is true."""
        if self.handles_reset:
            output, hx = self.module(input, self._pack(state), reset=reset)
            return output, _as_tuple(hx)
        state = self._start_where(reset[0], state)
        if not self.state_sizes[0] or not bool(reset[1:].any()):
            output, hx = self.module(input, self._pack(state))
            return output, _as_tuple(hx)
        return self._run_episodes(input, state, reset)

    def _run_episodes(
        self, input: Tensor, state: CoreState, reset: Tensor
    ) -> tuple[Tensor, CoreState]:
        """Run each part between resets as a sequence of its own, all in one packed call.

        The same numbers as stepping and zeroing, in one call where a loop would need T.
        """
        parts = _split_at(reset)
        padded = input.new_zeros(int(parts.lengths.max()), len(parts.lengths), input.shape[-1])
        padded[parts.step, parts.row] = input
        packed = pack_padded_sequence(padded, parts.lengths, enforce_sorted=False)
        # A part that starts the chunk continues its environment's state; the others start anew.
        start = self._start_where(parts.later, tuple(s[:, parts.env] for s in state))
        packed_output, hx = self.module(packed, self._pack(start))
        output, _ = pad_packed_sequence(packed_output)
        return output[parts.step, parts.row], tuple(s[:, parts.last] for s in _as_tuple(hx))

    def _start_where(self, flag: Tensor, state: CoreState) -> CoreState:
        """The state (1, S, H), anew where ``flag`` (S,) is true."""
        flag = flag.unsqueeze(-1)
        if not len(self.starts):
            return tuple(s.masked_fill(flag, 0.0) for s in state)
        return tuple(torch.where(flag, new, s) for new, s in zip(self.starts, state, strict=True))

    def _pack(self, state: CoreState) -> CoreState | Tensor:
        return state if len(state) > 1 else state[0]


def initialize(module: nn.Module) -> None:
    """Orthogonal weights, zero biases: the recipe of recurrent PPO (as in CleanRL), for every core.

    A weight of three dimensions is one matrix per mechanism, and each of them is made orthogonal.
    """
    for name, parameter in module.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1:  # not a learned initial state
            for matrix in parameter if parameter.dim() == 3 else [parameter]:
                nn.init.orthogonal_(matrix)


class _Parts(NamedTuple):
    step: Tensor  # (T, E) position of each step inside its part
    row: Tensor  # (T, E) index of its part
    lengths: Tensor  # (S,) on the CPU
    env: Tensor  # (S,) environment of each part
    later: Tensor  # (S,) bool, true where a part does not start the chunk
    last: Tensor  # (E,) the part each environment ends in


def _split_at(reset: Tensor) -> _Parts:
    num_steps, num_envs = reset.shape
    starts = reset.T.clone()  # (E, T): parts of one environment follow each other
    starts[:, 0] = True
    row = starts.flatten().cumsum(0).sub(1).view(num_envs, num_steps).T  # (T, E)
    env, first = starts.nonzero(as_tuple=True)  # each (S,)
    times = torch.arange(num_steps, device=reset.device).unsqueeze(-1)
    return _Parts(
        step=times - first[row],
        row=row,
        lengths=torch.bincount(row.flatten()).cpu(),
        env=env,
        later=first > 0,
        last=row[-1],
    )


def _as_tuple(hx: Tensor | CoreState) -> CoreState:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _rim(layer: type[RIM_LSTM | RIM_GRU], input_size: int, config: PPOConfig) -> nn.Module:
    return layer(
        input_size,
        config.hidden_size,
        config.num_rims,
        config.k,
        learned_initial_state=config.learned_initial_state,
    )


#: Name -> constructor. Every module maps (T, E, I), hx to (T, E, hidden_size), hx.
CORES: dict[str, Callable[[int, PPOConfig], nn.Module]] = {
    "rim_lstm": lambda size, c: _rim(RIM_LSTM, size, c),
    "rim_gru": lambda size, c: _rim(RIM_GRU, size, c),
    "lstm": lambda size, c: nn.LSTM(size, c.hidden_size),
    "gru": lambda size, c: nn.GRU(size, c.hidden_size),
    "none": lambda size, c: Memoryless(size, c.hidden_size),
}

_STATE_SIZES: dict[str, Callable[[PPOConfig], tuple[int, ...]]] = {
    "rim_lstm": lambda c: (c.hidden_size, c.hidden_size),
    "rim_gru": lambda c: (c.hidden_size,),
    "lstm": lambda c: (c.hidden_size, c.hidden_size),
    "gru": lambda c: (c.hidden_size,),
    "none": lambda c: (0,),
}
