"""Cores by name and by import path, and what a core has to compute, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from agents.config import PPOConfig
from agents.model.cores import RecurrentCore
from command_line import ENV
from lab.core_modules import CoreState
from lab.cores import CORE_NAMES
from rims import RIM_GRU, RIM_LSTM
from tolerances import assert_near

NUM_STEPS, NUM_ENVS, INPUT_SIZE, HIDDEN_SIZE = 7, 5, 6, 12

# Cores by import path -----------------------------------------------------------------------------


class OwnLSTM(nn.Module):
    """By hand, with a state of tensors of different form: h (1, B, H) and c (2, B, H / 2)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)
        self.pair = (2, hidden_size // 2)  # the shape of c, without the batch

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._run(input, hx, None)

    def _run(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None, reset: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if hx is None:
            layers, width = self.pair
            batch = input.shape[1]
            hx = input.new_zeros(1, batch, 2 * width), input.new_zeros(layers, batch, width)
        h, c = hx[0][0], hx[1].transpose(0, 1).flatten(1)
        outputs = []
        for t, x in enumerate(input):
            if reset is not None:
                h, c = (s.masked_fill(reset[t].unsqueeze(-1), 0.0) for s in (h, c))
            h, c = self.cell(x, (h, c))
            outputs.append(h)
        return torch.stack(outputs), (h[None], c.view(-1, *self.pair).transpose(0, 1))


class OwnLSTMWithReset(OwnLSTM):
    """The same, which starts its episodes itself."""

    def forward(
        self, input: Tensor, hx: Any = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._run(input, hx, reset)


class OwnLayers(nn.Module):
    """Three GRU cells on top of each other: one tensor (3, B, H)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        sizes = (input_size, hidden_size, hidden_size)
        self.cells = nn.ModuleList(nn.GRUCell(size, hidden_size) for size in sizes)
        self.width = hidden_size

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        states = list(input.new_zeros(3, input.shape[1], self.width) if hx is None else hx)
        outputs = []
        for x in input:
            for layer, cell in enumerate(self.cells):
                states[layer] = x = cell(x, states[layer])
            outputs.append(x)
        return torch.stack(outputs), torch.stack(states)


class HalfEmpty(nn.GRU):
    """A GRU with a part of its state that holds nothing."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        empty, state = (input.new_zeros(1, input.shape[1], 0), None) if hx is None else hx
        output, state = super().forward(input, state)
        return output, (empty, state)


class DeepLSTM(nn.LSTM):
    """A subclass of which only the constructor is its own."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, num_layers=2)


class ScaledGRU(nn.GRU):
    """A subclass whose forward cannot take a packed sequence."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, h = super().forward(2 * input, hx)
        return 3 * output, h


def by_path(core_class: type[nn.Module]) -> str:
    return f"{core_class.__module__}:{core_class.__name__}"


OWN = [by_path(c) for c in (OwnLSTM, OwnLSTMWithReset, OwnLayers, DeepLSTM, ScaledGRU)]
WITH_MEMORY = [*(name for name in CORE_NAMES if name != "none"), *OWN]
NAMES = [*WITH_MEMORY, "none"]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """In double precision: both sides do the same sums, in blocks of different sizes."""
    assert_near(actual, expected)


def make_config(name: str, **settings: Any) -> PPOConfig:
    sizes = {"hidden_size": HIDDEN_SIZE, "num_rims": 4, "k": 2}
    return PPOConfig(**{"env": ENV, "core": name, **sizes, **settings})


def make_core(name: str, learned: bool = True, seed: int = 0) -> RecurrentCore:
    config = make_config(name, learned_initial_state=learned)
    torch.manual_seed(seed)
    core = RecurrentCore(INPUT_SIZE, config).double()
    with torch.no_grad():  # biases may start at zero, which would hide one that is left out
        for parameter in core.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for start in learned_start(core):
            start.normal_()
    return core


def learned_start(core: RecurrentCore) -> list[Tensor]:
    """The parameters in which an episode's start is kept; none where it is zeros."""
    if isinstance(core.module, RIM_LSTM | RIM_GRU):
        return list(core.module.rim_cells[0].initial)
    return list(core.starts)


def start_of(core: RecurrentCore) -> CoreState:
    """The state at the start of an episode, which broadcasts over environments."""
    zeros = core.initial_state(1)
    learned = learned_start(core)
    if not learned:
        return zeros
    return tuple(a.reshape(b.shape) for a, b in zip(learned, zeros, strict=True))


def make_sequence(core: RecurrentCore, seed: int = 1) -> tuple[Tensor, CoreState]:
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(NUM_STEPS, NUM_ENVS, INPUT_SIZE, generator=generator, dtype=torch.float64)
    state = tuple(
        torch.randn(part.shape, generator=generator, dtype=torch.float64)
        for part in core.initial_state(NUM_ENVS)
    )
    return input, state


def make_reset(kind: str) -> Tensor:
    reset = torch.zeros(NUM_STEPS, NUM_ENVS, dtype=torch.bool)
    if kind == "at the start":
        reset[0, [0, 3]] = True
    elif kind == "inside":
        reset[3, 1] = reset[5, 2] = True
    elif kind == "at the end":
        reset[-1, [0, 4]] = True
    elif kind == "in a row":
        reset[2:5, 1] = True
    elif kind == "everywhere":
        reset[:] = True
    elif kind == "random":
        reset = torch.rand(reset.shape, generator=torch.Generator().manual_seed(2)) < 0.3
        assert bool(reset[1:].any())
        assert not bool(reset.all(0).any())
    return reset


KINDS = ("none", "at the start", "inside", "at the end", "in a row", "everywhere", "random")


def step_by_step(
    core: RecurrentCore, input: Tensor, state: CoreState, reset: Tensor
) -> tuple[Tensor, CoreState]:
    """The definition: replace the state where an episode starts, then take one step."""
    never = torch.zeros(1, NUM_ENVS, dtype=torch.bool)
    outputs = []
    for t in range(NUM_STEPS):
        starts = zip(start_of(core), state, strict=True)
        state = tuple(torch.where(reset[t, :, None], new, old) for new, old in starts)
        output, state = core(input[[t]], state, never)
        outputs.append(output)
    return torch.cat(outputs), state
