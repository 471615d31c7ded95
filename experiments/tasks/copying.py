"""Copying: recall symbols after a stretch of blanks (arXiv:1909.10893, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.configs.sequences import CopyingConfig
from experiments.data.algorithmic import copying_sequences
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
from lab.words import plural

_SHOWN = 100


class Batch(NamedTuple):
    """B sequences of tokens."""

    inputs: Tensor  # (T, B)
    targets: Tensor  # (T, B)


class CopyingExperiment(DrawnExperiment[CopyingConfig, Batch]):
    """A core recalls symbols after blanks; tested with more blanks.

    The loss is the cross-entropy of all steps, as in the authors' code; judged are the steps of the
    recall alone. The epoch that is best on validation sequences, which have as many blanks as those
    of training, is the one that is tested.
    """

    selection = Selection("validation_cross_entropy", "lower")
    curves = (
        Curve("validation_cross_entropy", "validation cross-entropy of the recall, nats"),
        Curve("validation_accuracy", "validation accuracy of the recall", "%"),
    )

    def make_model(self) -> nn.Module:
        """Embedded tokens, the core, logits of the tokens."""
        tokens = self.config.alphabet + 2
        return SequenceModel(nn.Embedding(tokens, self.config.embedding_size), self.config, tokens)

    @property
    def trained(self) -> int:
        """The number of blanks in the settings."""
        return self.config.train_blanks

    def steps(self, size: int) -> int:
        """Steps of the symbols, the blanks and the recall."""
        return 2 * self.config.items + size

    def drawn(self, number: int, size: int, rng: np.random.Generator) -> Batch:
        """``number`` sequences with ``size`` blanks."""
        config = self.config
        made = copying_sequences(number, size, rng, items=config.items, alphabet=config.alphabet)
        return Batch(*to_device(*made, device=self.device))

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy of all steps; beside it, that of the recall."""
        logits, _ = model(batch.inputs)
        with torch.no_grad():
            recall = self._cross_entropy(logits[-self.config.items :], batch.targets)
        return {
            "loss": F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()),
            "recall_cross_entropy": recall.mean(),
        }

    def _cross_entropy(self, recall: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each step of the recall, (items B,)."""
        told = targets[-self.config.items :]
        return F.cross_entropy(recall.flatten(0, 1), told.flatten(), reduction="none")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Cross-entropy and accuracy of the recall on validation sequences."""
        cross_entropy, accuracy = self._judged(model, self._validation)
        return {"validation_cross_entropy": cross_entropy, "validation_accuracy": accuracy}

    def _judged(self, model: nn.Module, batch: Batch) -> tuple[float, float]:
        """Cross-entropy in nats and share of right symbols, over all steps of the recall."""
        losses, right, items = [], 0, self.config.items
        for part in parts(batch.inputs.shape[1], EVALUATION_BATCH):
            inputs, targets = batch.inputs[:, part], batch.targets[:, part]
            recall = model(inputs)[0][-items:]
            losses.append(self._cross_entropy(recall, targets))
            right += int((recall.argmax(-1) == targets[-items:]).sum())
        all_losses = torch.cat(losses)
        return float(all_losses.double().mean()), right / len(all_losses)

    def test(self, model: nn.Module) -> dict[str, float]:
        """Cross-entropy and accuracy on test sequences with each number of blanks."""
        found = {}
        for blanks in self.config.lengths:
            batch = self.tested(blanks)
            judged = self._judged(model, batch)
            found[f"cross_entropy_{blanks}"], found[f"accuracy_{blanks}"] = judged
        return found

    @property
    def shown(self) -> Shown:
        """Validation sequences: symbols, blanks, recall."""
        items, steps = self.config.items, len(self._validation.inputs)
        phases = [
            Phase("symbols", 0, items),
            Phase("blanks", items, steps - items),
            Phase("recall", steps - items, steps),
        ]
        return Shown(self._validation.inputs[:, :_SHOWN], phases)

    @property
    def rows(self) -> Sequence[Row]:
        """Two rows for each number of blanks."""
        labels = {
            n: trained_label(plural(n, "blank"), n == self.config.train_blanks)
            for n in self.config.lengths
        }
        return [
            Row(f"cross_entropy_{n}", f"cross-entropy, {label}", "", "lower", 0.0)
            for n, label in labels.items()
        ] + [Row(f"accuracy_{n}", f"accuracy, {label}") for n, label in labels.items()]

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables."""
        config = self.config
        chance = np.log(config.alphabet)
        return [
            f"Cross-entropy in nats per symbol and accuracy, over the {config.items} steps of the "
            f"recall; guessing among the {config.alphabet} symbols gives {chance:.2f} and "
            f"{100 / config.alphabet:.1f} %. {config.test_sequences} new sequences for each number "
            "of blanks; tested are the weights of the epoch that was best on validation sequences "
            f"with {config.train_blanks} blanks.",
            "The authors of arXiv:1909.10893 train with 600 features, 6 mechanisms, 4 of them "
            "active, batches of 64, dropout 0.5 and 200 epochs of 200 steps, and carry states over "
            f"from one random batch to the next; here {config.epochs} epochs of "
            f"{config.steps_per_epoch} steps with batches of {config.batch_size}, states that "
            "start anew, and the settings below.",
        ]
