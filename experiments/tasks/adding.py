"""Adding: the sum of two marked numbers of a sequence (Hochreiter and Schmidhuber, 1997)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.configs.sequences import AddingConfig
from experiments.data.algorithmic import adding_sequences
from experiments.experiment import Curve, Row, Selection
from experiments.shared.images import parts
from experiments.shared.sequences import (
    EVALUATION_BATCH,
    DrawnExperiment,
    Phase,
    SequenceModel,
    Shown,
    to_device,
)
from lab.reporting.tables import trained_label

_SHOWN = 100

#: Variance of the sum of two numbers uniform on [0, 1): the error of always predicting 1.
_VARIANCE = 1 / 6


class Batch(NamedTuple):
    """B sequences of numbers, two of which are marked."""

    inputs: Tensor  # (T, B, 2)
    targets: Tensor  # (B,)


class AddingExperiment(DrawnExperiment[AddingConfig, Batch]):
    """A core adds two numbers far apart; tested on longer sequences.

    The loss is the squared error after the last step. The epoch that is best on validation
    sequences, which are as long as those of training, is the one that is tested.
    """

    selection = Selection("validation_error", "lower")
    curves = (Curve("validation_error", "mean squared error on validation sequences"),)

    def make_model(self) -> nn.Module:
        """A linear map of number and mark, the core, one number."""
        return SequenceModel(nn.Linear(2, self.config.embedding_size), self.config, 1)

    @property
    def trained(self) -> int:
        """The length in the settings."""
        return self.config.train_length

    def steps(self, size: int) -> int:
        """A step per number."""
        return size

    def drawn(self, number: int, size: int, rng: np.random.Generator) -> Batch:
        """``number`` sequences of length ``size``."""
        return Batch(*to_device(*adding_sequences(number, size, rng), device=self.device))

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error."""
        return {"loss": F.mse_loss(_sums(model, batch.inputs), batch.targets)}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean squared error on validation sequences."""
        return {"validation_error": self._error(model, self._validation)}

    def _error(self, model: nn.Module, batch: Batch) -> float:
        total = 0.0
        for part in parts(len(batch.targets), EVALUATION_BATCH):
            wrong = _sums(model, batch.inputs[:, part]) - batch.targets[part]
            total += float(wrong.double().square().sum())
        return total / len(batch.targets)

    def test(self, model: nn.Module) -> dict[str, float]:
        """Mean squared error on test sequences of each length."""
        config = self.config
        return {
            f"error_{length}": self._error(model, self.tested(length)) for length in config.lengths
        }

    @property
    def shown(self) -> Shown:
        """Validation sequences, all with the marks at a quarter and three quarters."""
        inputs = self._validation.inputs[:, :_SHOWN].clone()
        length = len(inputs)
        first, second = length // 4, length // 2 + length // 4
        inputs[..., 1] = 0.0
        inputs[first, :, 1] = inputs[second, :, 1] = 1.0
        ends = [0, first, first + 1, second, second + 1, length]
        labels = ["", "marked", "", "marked", ""]
        phases = [Phase(*one) for one in zip(labels, ends, ends[1:], strict=False)]
        return Shown(inputs, phases)

    @property
    def rows(self) -> Sequence[Row]:
        """One row for each length."""
        trained = self.config.train_length
        return [
            Row(
                f"error_{n}",
                trained_label(f"squared error, {n} numbers", n == trained),
                "",
                "lower",
                0.0,
            )
            for n in self.config.lengths
        ]

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables."""
        config = self.config
        return [
            f"Mean squared error of the sum on {config.test_sequences} new sequences of each "
            f"length; always saying 1 gives {_VARIANCE:.4f}. Tested are the weights of the epoch "
            f"that was best on validation sequences of {config.train_length} numbers.",
            "The authors of arXiv:1909.10893 train with 600 features, 6 mechanisms, 4 of them "
            "active, and 100 epochs of 30 000 sequences that stay the same; there a step has two "
            f"mark features, one for each half. Here {config.epochs} epochs of "
            f"{config.steps_per_epoch} steps with {config.batch_size} new sequences each, one mark "
            "feature, and the settings below.",
        ]


def _sums(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's output after the last step, (B,)."""
    output, _ = model(inputs, last_only=True)
    sums: Tensor = output.squeeze(-1)
    return sums
