"""Recurrent cores by name or import path, all used through the contract of nn.LSTM."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from agents.config import PPOConfig
from agents.model.resetting import run_with_resets, supports
from lab.core_modules import (
    CoreState,
    as_tuple,
    computes_as,
    learned_starts,
    make_layer,
    require_repeatable,
    state_form,
)
from lab.cores import CORE_NAMES, RIM_CORES
from rims import RepeatedInput, scan_path


class RecurrentCore(nn.Module):
    """One interface over every core: sequences in which episodes end and begin.

    A core with an import path is a subclass of ``nn.Module`` made and called as ``nn.LSTM`` and
    ``nn.GRU`` are: ``Class(input_size, hidden_size)``, then ``module(input, hx)`` with input
    (T, B, I), which returns output (T, B, hidden_size) and hx, one tensor (layers, B, features) or
    a tuple of them. It draws its own weights. If its forward takes ``reset`` (T, B), it zeroes its
    state itself where that is true; it is not asked to if episodes start from a learned state.

    Args:
        input_size: features of the input.
        config: the core and its sizes.

    Shape:
        ``(T, E, I), state, reset (T, E) -> (T, E, H), state``; the input may be a ``RepeatedInput``

    Raises:
        ValueError: in one line, if the core has an import path and does not keep to this.

    Example:
        >>> config = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="torch.nn:GRU", hidden_size=8)
        >>> core = RecurrentCore(6, config)
        >>> start = torch.ones(5, 3, dtype=torch.bool)
        >>> output, (h,) = core(torch.zeros(5, 3, 6), core.initial_state(3), start)
        >>> output.shape, h.shape
        (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]))
    """

    like: Tensor

    def __init__(self, input_size: int, config: PPOConfig) -> None:
        super().__init__()
        self.module = make_module(input_size, config)
        self.output_size = config.hidden_size
        with scan_path("reference"):  # a trial of two steps compiles no kernels
            self.form = state_form(self.module, input_size, config)
            if config.core not in CORE_NAMES:
                require_repeatable(self.module, config.core, input_size)
        self.is_memoryless = not any(size for _, size in self.form.shapes)
        self.starts = learned_starts(self.form, config)
        # A subclass with a forward of its own may not know of these forms of input.
        self.handles_repeated = computes_as(self.module, *RIM_CORES)
        self.handles_packed = computes_as(self.module, "lstm", "gru")
        self.handles_reset = _takes_reset(self.module) and not len(self.starts)
        # Type and device of states; a user's core may have no parameter to tell them by.
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def initial_state(self, num_envs: int) -> CoreState:
        """The state before a first observation; what it holds does not count, its reset does."""
        return tuple(
            self.like.new_zeros(layers, num_envs, size) for layers, size in self.form.shapes
        )

    def forward(
        self, input: Tensor | RepeatedInput, state: CoreState, reset: Tensor
    ) -> tuple[Tensor, CoreState]:
        """Run the sequence; the state starts anew before every step where ``reset`` is true."""
        if self.handles_reset:
            if isinstance(input, RepeatedInput) and not self.handles_repeated:
                input = input.expand()
            output, hx = self.module(input, self.form.pack(state), reset=reset)
            return output, as_tuple(hx)
        if isinstance(input, RepeatedInput):
            input = input.expand()
        is_whole = self.is_memoryless or not bool(reset[1:].any())
        has_loop = input.device.type == "cpu" and supports(self.module)
        # Sequences of nn.GRU take its loop in any case: at the sizes of agents it learns faster so.
        if has_loop and (not is_whole or (isinstance(self.module, nn.GRU) and len(reset) > 1)):
            starts = tuple(self.starts) or self.initial_state(1)
            return run_with_resets(self.module, input, state, starts, reset)  # type: ignore[arg-type]
        if is_whole:
            output, hx = self.module(input, self.form.pack(self._start_where(reset[0], state)))
            return output, as_tuple(hx)
        if self.handles_packed:
            return self._run_episodes(input, state, reset)
        return self._run_stretches(input, state, reset)

    def _run_stretches(
        self, input: Tensor, state: CoreState, reset: Tensor
    ) -> tuple[Tensor, CoreState]:
        """Run all environments up to the next reset of any, one stretch after another.

        Needs of the core nothing but the contract, and in the worst case T calls.
        """
        later = 1 + reset[1:].any(1).nonzero().flatten()
        outputs = []
        for begin, end in pairwise([0, *later.tolist(), len(reset)]):
            state = self._start_where(reset[begin], state)
            output, hx = self.module(input[begin:end], self.form.pack(state))
            outputs.append(output)
            state = as_tuple(hx)
        return torch.cat(outputs), state

    def _run_episodes(
        self, input: Tensor, state: CoreState, reset: Tensor
    ) -> tuple[Tensor, CoreState]:
        """Run each part between resets as a sequence of its own, all in one packed call.

        The same numbers as stepping and zeroing. Used on GPUs, and for several layers.
        """
        parts = _split_at(reset)
        padded = input.new_zeros(int(parts.lengths.max()), len(parts.lengths), input.shape[-1])
        padded[parts.step, parts.row] = input
        packed = pack_padded_sequence(padded, parts.lengths, enforce_sorted=False)
        start = self._start_where(parts.anew, tuple(s[:, parts.env] for s in state))
        packed_output, hx = self.module(packed, self.form.pack(start))
        output, _ = pad_packed_sequence(packed_output)
        return output[parts.step, parts.row], tuple(s[:, parts.last] for s in as_tuple(hx))

    def _start_where(self, flag: Tensor, state: CoreState) -> CoreState:
        """The state (layers, S, H), anew where ``flag`` (S,) is true."""
        flag = flag.unsqueeze(-1)
        if not len(self.starts):
            return tuple(s.masked_fill(flag, 0.0) for s in state)
        return tuple(torch.where(flag, new, s) for new, s in zip(self.starts, state, strict=True))


def require_usable(config: PPOConfig) -> None:
    """Refuse a core, given by import path, that cannot be made or breaks the contract.

    Raises:
        ValueError: in one line.
    """
    if config.core not in CORE_NAMES:
        RecurrentCore(config.encoder_size, config)


def make_module(input_size: int, config: PPOConfig) -> nn.Module:
    """The layer of a core, with new weights; a class with an import path draws its own."""
    module = make_layer(input_size, config)
    if config.core in CORE_NAMES:
        initialize(module, config.comm_gate_bias)
    return module


def _takes_reset(module: nn.Module) -> bool:
    parameter = inspect.signature(module.forward).parameters.get("reset")
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return parameter is not None and parameter.kind in by_keyword


def initialize(module: nn.Module, comm_gate_bias: float = 0.0) -> None:
    """Orthogonal weights, zero biases: the recipe of recurrent PPO (as in CleanRL), for every core.

    A weight of three dimensions is one matrix per mechanism, and each of them is made orthogonal.
    The gates of the communication between mechanisms start at ``comm_gate_bias``.
    """
    for name, parameter in module.named_parameters():
        if "bias" in name:
            is_gate = name.endswith(".comm_gate_bias")
            nn.init.constant_(parameter, comm_gate_bias if is_gate else 0.0)
        elif parameter.dim() > 1:  # not a learned initial state
            for matrix in parameter if parameter.dim() == 3 else [parameter]:
                nn.init.orthogonal_(matrix)


class _Parts(NamedTuple):
    step: Tensor  # (T, E) position of each step inside its part
    row: Tensor  # (T, E) index of its part
    lengths: Tensor  # (S,) on the CPU
    env: Tensor  # (S,) environment of each part
    anew: Tensor  # (S,) bool, false where a part continues its environment's state
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
        anew=reset[first, env],
        last=row[-1],
    )
