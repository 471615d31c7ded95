"""Code shared by tasks on sequences: a model around a core, and pictures of its mechanisms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from experiments.configs.sequences import DrawnConfig, SequenceConfig
from experiments.experiment import Batch, Experiment
from experiments.shared.cores import Core, core_parameters
from lab.core_modules import CoreState
from rims import RepeatedInput, plot_activations, trace

Config = TypeVar("Config", bound=SequenceConfig)
Drawn = TypeVar("Drawn", bound=DrawnConfig)

#: Sequences that are judged at a time.
EVALUATION_BATCH = 250

NUMBER = 4  #: bytes, of float32

_VALIDATION, _TEST = 1, 2  # keep the draws of one seed apart


class SequenceModel(nn.Module):
    """An embedding, a core and a linear head.

    Args:
        embedding: from what a step shows to ``config.embedding_size`` features.
        config: the core.
        outputs: features that the head gives.

    Shape:
        ``(T, B, ...)`` as the embedding takes it, or packed, to ``(T, B, outputs)``, or packed; and
        the state of the core. With ``last_only`` the output is that of the last step alone,
        ``(B, outputs)``.

    Example:
        >>> config = SequenceConfig(embedding_size=3, hidden_size=6, num_rims=2, k=1)
        >>> model = SequenceModel(nn.Embedding(7, 3), config, 5)
        >>> logits, state = model(torch.zeros(4, 2, dtype=torch.int64))
        >>> logits.shape, len(state)
        (torch.Size([4, 2, 5]), 2)
    """

    def __init__(self, embedding: nn.Module, config: SequenceConfig, outputs: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.core = Core(config.embedding_size, config)
        self.head = nn.Linear(config.hidden_size, outputs)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        input: Tensor | PackedSequence,
        state: CoreState | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[Any, CoreState]:
        """Run the sequences, from where ``state`` was left or from the start."""
        output, state = self.core(self._read(input), state)
        output = output[-1] if last_only else output
        return _on_steps(lambda steps: self.head(self.dropout(steps)), output), state

    def _read(self, input: Tensor | PackedSequence) -> Tensor | PackedSequence | RepeatedInput:
        embedding = self.embedding
        dropped = self.training and self.dropout.p > 0
        if isinstance(embedding, nn.Embedding) and isinstance(input, Tensor) and not dropped:
            return RepeatedInput(embedding.weight, input)  # which RIM cores read faster
        read: Tensor | PackedSequence = _on_steps(
            lambda steps: self.dropout(embedding(steps)), input
        )
        return read


def _on_steps(function: Callable[[Tensor], Tensor], steps: Any) -> Any:
    """Apply it to every step, packed or not."""
    if isinstance(steps, PackedSequence):
        return steps._replace(data=function(steps.data))
    return function(steps)


class Phase(NamedTuple):
    """A part of a sequence, for pictures."""

    label: str
    begin: int  # step
    end: int  # the step behind its last one


class Shown(NamedTuple):
    """Sequences whose mechanisms are drawn."""

    input: Any  # as the model takes it, on its device
    phases: Sequence[Phase]


class SequenceExperiment(Experiment[Config, Batch]):
    """A task that compares cores: the model in its settings is the core of a SequenceModel."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Hidden size and parameters of the core."""
        return {
            "hidden size": self.config.hidden_size,
            "parameters of the core": core_parameters(self.config),
        }

    @property
    @abstractmethod
    def shown(self) -> Shown:
        """Validation sequences for :meth:`activity`, with what they consist of."""

    def activity(self, model: nn.Module) -> Figure:
        """Draw at which steps each mechanism is active, as share of some validation sequences."""
        input, phases = self.shown
        with trace(model) as record:
            model(input)
        figure = plot_activations(record, sample=None)
        for layer, (panel, active) in enumerate(
            zip(figure.axes, record.active.values(), strict=True), start=1
        ):
            which = f" (layer {layer})" if len(figure.axes) > 1 else ""
            panel.set_title(
                f"{self.config.task}, {self.config.model}{which}: share of {active.shape[1]} "
                "sequences\nin which a mechanism is active (beside it: at all steps)",
                fontsize=10,
                loc="left",
                pad=22 if phases else 6,
            )
            top = panel.get_xaxis_transform()
            for phase in phases:
                if phase.begin:
                    panel.axvline(phase.begin - 0.5, color="#222222", linewidth=1.2)
                middle = (phase.begin + phase.end - 1) / 2
                panel.text(middle, 1.04, phase.label, ha="center", fontsize=9, transform=top)
        return figure


class DrawnExperiment(SequenceExperiment[Drawn, Batch]):
    """A task whose sequences are drawn, of any size; trained on one size and tested on others."""

    @property
    @abstractmethod
    def trained(self) -> int:
        """The size trained on: a length, or a number of blanks."""

    @abstractmethod
    def drawn(self, number: int, size: int, rng: np.random.Generator) -> Batch:
        """``number`` new sequences of a size."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches."""
        return self.config.steps_per_epoch

    def batches(self, epoch: int) -> Iterator[Batch]:
        """New sequences."""
        rng = self.rng(epoch)
        for _ in range(self.config.steps_per_epoch):
            yield self.drawn(self.config.batch_size, self.trained, rng)

    @cached_property
    def _validation(self) -> Batch:
        rng = self.rng(0, _VALIDATION)
        return self.drawn(self.config.validation_sequences, self.trained, rng)

    @property
    def data_memory(self) -> float:
        """Bytes of the largest set that is drawn, and of the core's outputs for one batch."""
        config = self.config
        judged = [(config.validation_sequences, self.trained)]
        judged += [(config.test_sequences, size) for size in config.lengths]
        return max(
            outputs_memory(config, self.steps(self.trained), config.batch_size),
            *(
                NUMBER * self.steps(size) * float(number)
                + outputs_memory(config, self.steps(size), min(number, EVALUATION_BATCH))
                for number, size in judged
            ),
        )

    @abstractmethod
    def steps(self, size: int) -> int:
        """The number of steps of a sequence of a size."""

    def tested(self, size: int) -> Batch:
        """The test sequences of a size."""
        return self.drawn(self.config.test_sequences, size, self.rng(size, _TEST))


def outputs_memory(config: SequenceConfig, steps: int, sequences: int) -> float:
    """Bytes of the core's outputs for a number of sequences."""
    return NUMBER * float(steps) * sequences * config.hidden_size


def to_device(*arrays: Any, device: torch.device) -> tuple[Tensor, ...]:
    """Arrays as tensors on a device."""
    return tuple(torch.from_numpy(array).to(device) for array in arrays)
