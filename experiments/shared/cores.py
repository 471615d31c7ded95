"""Recurrent cores of experiments, all used in one way; sizes with equal parameters."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from experiments.configs.sequences import SequenceConfig
from lab.core_modules import (
    CoreState,
    as_tuple,
    computes_as,
    learned_starts,
    make_layer,
    state_form,
)
from lab.cores import CORE_NAMES, RIM_CORES
from lab.matching import matched
from rims import RepeatedInput, scan_path

Config = TypeVar("Config", bound=SequenceConfig)


class Core(nn.Module):
    """A core of any name or import path: a sequence and a state to outputs and a state.

    Weights are drawn as the layers do it themselves. With ``learned_initial_state`` every core
    starts from parameters, zero at first; RIM layers have theirs inside.

    Args:
        input_size: I, features of the input.
        config: the core and its options.

    Shape:
        ``(T, B, I)``, a packed sequence or a ``RepeatedInput``, and a state or ``None``, to
        ``(T, B, D)``, packed if the input is, and the state after each sequence's last step.

    Raises:
        ValueError: in one line, if a class with an import path does not keep to the contract of
            :mod:`lab.core_modules`.

    Example:
        >>> core = Core(3, SequenceConfig(model="gru", hidden_size=8))
        >>> output, (h,) = core(torch.zeros(5, 2, 3))
        >>> output.shape, h.shape
        (torch.Size([5, 2, 8]), torch.Size([1, 2, 8]))
    """

    def __init__(self, input_size: int, config: SequenceConfig) -> None:
        super().__init__()
        # A class of a user's own may read numbers, which the device "meta" has not.
        place = nullcontext() if config.core in CORE_NAMES else torch.device("cpu")
        with place, scan_path("reference"):  # a trial of two steps compiles no kernels
            self.module = make_layer(input_size, config)
            self.form = state_form(self.module, input_size, config)
        self.starts = learned_starts(self.form, config)
        # A subclass with a forward of its own may not know of these forms of input.
        self.handles_repeated = computes_as(self.module, *RIM_CORES)
        self.handles_packed = self.handles_repeated or computes_as(self.module, "lstm", "gru")

    def forward(
        self, input: Tensor | PackedSequence | RepeatedInput, state: CoreState | None = None
    ) -> tuple[Tensor | PackedSequence, CoreState]:
        """Run the sequences, from where ``state`` was left or from the start."""
        if isinstance(input, RepeatedInput) and not self.handles_repeated:
            input = input.expand()
        if state is None and len(self.starts):
            batch = _batch_size(input)
            state = tuple(start.expand(-1, batch, -1).contiguous() for start in self.starts)
        if isinstance(input, PackedSequence) and not self.handles_packed:
            return self._run_packed(input, state)
        output, hx = self.module(input, None if state is None else self.form.pack(state))
        return output, as_tuple(hx)

    def _run_packed(
        self, input: PackedSequence, state: CoreState | None
    ) -> tuple[PackedSequence, CoreState]:
        """Run packed sequences in stretches, up to the end of one or more of them after another."""
        sizes, begin = input.batch_sizes.tolist(), 0
        if state is not None and input.sorted_indices is not None:
            state = tuple(part[:, input.sorted_indices] for part in state)
        outputs: list[Tensor] = []
        ended: list[CoreState] = []  # the shortest sequences first
        for size in sorted(set(sizes), reverse=True):
            if state is not None:
                ended.append(tuple(part[:, size:] for part in state))
                state = tuple(part[:, :size].contiguous() for part in state)
            steps = sizes.count(size)
            stretch = input.data[begin : begin + steps * size].view(steps, size, -1)
            begin += steps * size
            output, hx = self.module(stretch, None if state is None else self.form.pack(state))
            outputs.append(output.flatten(0, 1))
            state = as_tuple(hx)
        assert state is not None
        rows = zip(*reversed([*ended, state]), strict=True)
        final = tuple(torch.cat(parts, dim=1) for parts in rows)
        if input.unsorted_indices is not None:
            final = tuple(part[:, input.unsorted_indices] for part in final)
        return input._replace(data=torch.cat(outputs)), final


def _batch_size(input: Tensor | PackedSequence | RepeatedInput) -> int:
    if isinstance(input, PackedSequence):
        return int(input.batch_sizes[0])
    return (input.place if isinstance(input, RepeatedInput) else input).shape[1]


def core_parameters(config: SequenceConfig) -> int:
    """Trainable parameters of the core alone, which reads ``embedding_size`` features.

    Example:
        >>> core_parameters(SequenceConfig(model="lstm", embedding_size=3, hidden_size=5))
        200
    """
    with torch.device("meta"):  # there tensors have a shape and no content
        core = Core(config.embedding_size, config)
    return sum(p.numel() for p in core.parameters())


def with_equal_parameters(config: Config, reference: Config) -> Config:
    """The settings with the hidden size that gives one core as many parameters as another.

    Raises:
        ValueError: as :func:`lab.matching.matched`.

    Example:
        >>> from dataclasses import replace
        >>> rim = SequenceConfig(model="rim_lstm", hidden_size=96, embedding_size=64)
        >>> with_equal_parameters(replace(rim, model="lstm"), rim).hidden_size
        100
    """
    return matched(config, reference, core_parameters)
