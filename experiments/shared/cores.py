"""Recurrent cores by name, from settings, all used in one way; sizes with equal parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from experiments.configs.sequences import RIM_CORES, SequenceConfig
from lab.matching import nearest_size
from rims import RIM_GRU, RIM_LSTM, RepeatedInput

Config = TypeVar("Config", bound=SequenceConfig)

#: State of a core: one tensor (1, B, D), or two for LSTMs.
CoreState = tuple[Tensor, ...]


class Core(nn.Module):
    """A core of any name: a sequence and a state to outputs and a state.

    Weights are drawn as the layers do it themselves. With ``learned_initial_state`` every core
    starts from parameters, zero at first; RIM layers have theirs inside.

    Args:
        input_size: I, features of the input.
        config: which core, and its sizes.

    Shape:
        ``(T, B, I)``, a packed sequence or a ``RepeatedInput``, and a state or ``None``, to
        ``(T, B, D)``, packed if the input is, and the state after each sequence's last step.

    Example:
        >>> core = Core(3, SequenceConfig(model="gru", hidden_size=8))
        >>> output, (h,) = core(torch.zeros(5, 2, 3))
        >>> output.shape, h.shape
        (torch.Size([5, 2, 8]), torch.Size([1, 2, 8]))
    """

    def __init__(self, input_size: int, config: SequenceConfig) -> None:
        super().__init__()
        self.module = _make_module(input_size, config)
        self.has_cell = config.model in ("rim_lstm", "lstm")
        learns = config.learned_initial_state and config.model not in RIM_CORES
        starts = [torch.zeros(1, 1, config.hidden_size) for _ in range(1 + self.has_cell)]
        self.starts = nn.ParameterList(starts if learns else [])

    def forward(
        self, input: Tensor | PackedSequence | RepeatedInput, state: CoreState | None = None
    ) -> tuple[Tensor | PackedSequence, CoreState]:
        """Run the sequences, from where ``state`` was left or from the start."""
        if isinstance(input, RepeatedInput) and not isinstance(self.module, RIM_LSTM | RIM_GRU):
            input = input.expand()
        if state is None and len(self.starts):
            batch = _batch_size(input)
            state = tuple(start.expand(-1, batch, -1).contiguous() for start in self.starts)
        hx = None if state is None else state if self.has_cell else state[0]
        output, hx = self.module(input, hx)
        return output, hx if self.has_cell else (hx,)


def _batch_size(input: Tensor | PackedSequence | RepeatedInput) -> int:
    if isinstance(input, PackedSequence):
        return int(input.batch_sizes[0])
    return (input.place if isinstance(input, RepeatedInput) else input).shape[1]


def _make_module(input_size: int, config: SequenceConfig) -> nn.Module:
    if config.model == "lstm":
        return nn.LSTM(input_size, config.hidden_size)
    if config.model == "gru":
        return nn.GRU(input_size, config.hidden_size)
    layer = RIM_LSTM if config.model == "rim_lstm" else RIM_GRU
    return layer(
        input_size,
        config.hidden_size,
        config.num_rims,
        config.k,
        input_key_size=config.input_key_size,
        input_value_size=config.input_value_size or None,
        num_comm_heads=config.num_comm_heads,
        comm_key_size=config.comm_key_size,
        comm_value_size=config.comm_value_size,
        learned_initial_state=config.learned_initial_state,
    )


def core_parameters(config: SequenceConfig) -> int:
    """Trainable parameters of the core alone, which reads ``embedding_size`` features.

    Example:
        >>> core_parameters(SequenceConfig(model="lstm", embedding_size=3, hidden_size=5))
        200
    """
    with torch.device("meta"):  # there tensors have a shape and no content
        core = Core(config.embedding_size, config)
    return sum(p.numel() for p in core.parameters())


def with_equal_parameters(config: Config, reference: SequenceConfig) -> Config:
    """The settings with the hidden size that gives one core as many parameters as another.

    Args:
        config: the core whose size is sought; its own does not count.
        reference: the core to be equal to.

    Raises:
        ValueError: in one line, if no size comes within 2 %.

    Example:
        >>> rim = SequenceConfig(model="rim_lstm", hidden_size=96, embedding_size=64)
        >>> with_equal_parameters(replace(rim, model="lstm"), rim).hidden_size
        100
    """
    unit = config.num_rims if config.model in RIM_CORES else 1

    def count(hidden_size: int) -> int:
        return core_parameters(replace(config, hidden_size=hidden_size))

    size = nearest_size(
        count, core_parameters(reference), unit, core=config.model, reference=reference.model
    )
    return replace(config, hidden_size=size)
