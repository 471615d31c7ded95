"""Sequential MNIST: digits read as sequences, also larger ones (arXiv:1909.10893, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.configs.sequences import SequentialMNISTConfig
from experiments.data.common import LabelledImages, hold_out, identity, shuffled
from experiments.data.pixel_sequences import pixel_sequences
from experiments.data.published.mnist import load_mnist
from experiments.experiment import Curve, Published, Row, Selection
from experiments.shared.images import parts, require_a_batch
from experiments.shared.sequences import (
    Phase,
    SequenceExperiment,
    SequenceModel,
    Shown,
    outputs_memory,
)
from lab.reporting.tables import trained_label

_EVALUATION_BATCH = 250  # images
_CLASSES = 10
_PERMUTATION_SEED = 0  # the same for all runs, so that they have one task
_SHOWN = 100

#: Accuracy in per cent at each of these sides, trained at 14 x 14 on all digits of MNIST with 600
#: features, by core, and by how many of 6 mechanisms are active; all as in the README of
#: github.com/dido1998/Recurrent-Independent-Mechanisms.
_SIDES = (16, 19, 24)
_PUBLISHED_RIM = {
    4: (87.89, 69.75, 46.23),
    5: (88.67, 59.32, 28.85),
    6: (80.31, 56.19, 37.45),
}
_PUBLISHED_LSTM = (80.43, 39.74, 20.48)


class Batch(NamedTuple):
    """B digits as sequences."""

    inputs: Tensor  # (T, B) 0 or 1, or (T, B, X) rows of them
    labels: Tensor  # (B,)


class SequentialMNISTExperiment(SequenceExperiment[SequentialMNISTConfig, Batch]):
    """A core reads a digit step by step and names it after the last one; tested at other sizes.

    Pixels are black or white. The epoch that is best on validation digits of the size trained with
    is the one that is tested.
    """

    selection = Selection("validation_accuracy")
    curves = (Curve("loss", "loss"), Curve("validation_accuracy", "validation accuracy", "%"))

    def check(self) -> None:
        """Refuse missing digits, fewer than a batch, and models that cannot be built."""
        config = self.config
        load_mnist(config.data_dir, "test", download=config.download)
        require_a_batch(len(self._digits[0].labels), config.batch_size)
        super().check()

    @property
    def data_memory(self) -> float:
        """Bytes of the core's outputs for one batch."""
        config, most = self.config, min(len(self._split[1].labels), _EVALUATION_BATCH)
        sets = [(config.batch_size, config.train_side), *((most, side) for side in config.sides)]
        return max(
            outputs_memory(config, side if config.order == "row" else side**2, number)
            for number, side in sets
        )

    def make_model(self) -> nn.Module:
        """Embedded pixels, or a linear map of rows; the core; logits of the classes."""
        config, size = self.config, self.config.embedding_size
        by_row = config.order == "row"
        embedding = nn.Linear(config.train_side, size) if by_row else nn.Embedding(2, size)
        return SequenceModel(embedding, config, _CLASSES)

    @property
    def data_identity(self) -> str:
        """Number and checksum of the digits."""
        train, test = self._split
        return identity(train, test)

    @cached_property
    def _split(self) -> tuple[LabelledImages, LabelledImages]:
        config = self.config
        return (
            _first(load_mnist(config.data_dir, "train"), config.train_digits),
            _first(load_mnist(config.data_dir, "test"), config.test_digits),
        )

    @cached_property
    def _digits(self) -> tuple[LabelledImages, LabelledImages]:
        """Digits to train on and to validate on."""
        return hold_out(self._split[0], self.config.validation_share)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches."""
        return len(self._digits[0].labels) // self.config.batch_size

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Each training digit once, but for those that would not fill a batch."""
        digits, config = self._digits[0], self.config
        size = config.batch_size
        for index in shuffled(self.rng(epoch), len(digits.labels), size, drop_last=True):
            chosen = LabelledImages(digits.images[index], digits.labels[index])
            yield self._batch(chosen, config.train_side)

    def _batch(self, digits: LabelledImages, side: int) -> Batch:
        config = self.config
        steps = pixel_sequences(
            digits.images,
            side,
            config.order,
            trained_side=config.train_side,
            seed=_PERMUTATION_SEED,
        )
        inputs = torch.from_numpy(steps).to(self.device)
        if config.order != "row":
            inputs = inputs.squeeze(-1).long()
        return Batch(inputs, torch.from_numpy(digits.labels).to(self.device))

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy of the class."""
        logits, _ = model(batch.inputs, last_only=True)
        right = (logits.argmax(-1) == batch.labels).float().mean()
        return {"loss": F.cross_entropy(logits, batch.labels), "train_accuracy": right}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on validation digits; with ``select_per_side``, on all digits of every size."""
        side = self.config.train_side
        found = {"validation_accuracy": self._accuracy(model, self._digits[1], side)}
        if self.config.select_per_side:
            for n in self.config.sides:
                found[f"validation_accuracy_{n}"] = self._accuracy(model, self._digits[1], n)
            found |= self.test(model)
        return found

    def _accuracy(self, model: nn.Module, digits: LabelledImages, side: int) -> float:
        right = 0
        for part in parts(len(digits.labels), _EVALUATION_BATCH):
            batch = self._batch(LabelledImages(digits.images[part], digits.labels[part]), side)
            logits, _ = model(batch.inputs, last_only=True)
            right += int((logits.argmax(-1) == batch.labels).sum())
        return right / len(digits.labels)

    def test(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on test digits of each size."""
        digits = self._split[1]
        return {f"accuracy_{n}": self._accuracy(model, digits, n) for n in self.config.sides}

    def test_of_progress(self, progress: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """With ``select_per_side``, each size at the epoch best on its own validation digits."""
        if not self.config.select_per_side:
            return {}
        found = {}
        for n in self.config.sides:
            judged = progress[f"validation_accuracy_{n}"]
            best = judged.index(max(judged))  # of equal ones the first, as `selection` takes
            found[f"accuracy_{n}_selected"] = progress[f"accuracy_{n}"][best]
        return found

    @property
    def shown(self) -> Shown:
        """Validation digits of the size trained with."""
        digits, side = self._digits[1], self.config.train_side
        some = LabelledImages(digits.images[:_SHOWN], digits.labels[:_SHOWN])
        batch = self._batch(some, side)
        if self.config.order != "pixel":
            return Shown(batch.inputs, [])
        rows = [Phase(str(row + 1), row * side, (row + 1) * side) for row in range(side)]
        return Shown(batch.inputs, rows)

    @property
    def rows(self) -> Sequence[Row]:
        """One row for each size; with ``select_per_side``, one more for each."""
        trained = self.config.train_side
        labels = {n: trained_label(f"{n} x {n}", n == trained) for n in self.config.sides}
        rows = [Row(f"accuracy_{n}", label) for n, label in labels.items()]
        if self.config.select_per_side:
            rows += [
                Row(f"accuracy_{n}_selected", f"{label}, selected on this size", drawn=False)
                for n, label in labels.items()
            ]
        return rows

    @property
    def published(self) -> Mapping[str, Mapping[str, Published]]:
        """Pixel by pixel, trained at 14 x 14, for cores of the published size."""
        config = self.config
        size = (config.order, config.train_side, config.hidden_size, config.num_layers)
        if size != ("pixel", 14, 600, 1):
            return {}
        numbers = {"lstm": _PUBLISHED_LSTM}
        if config.num_rims == 6 and config.k in _PUBLISHED_RIM:
            numbers["rim_lstm"] = _PUBLISHED_RIM[config.k]
        return {
            core: {f"accuracy_{n}": Published(v) for n, v in zip(_SIDES, row, strict=True)}
            for core, row in numbers.items()
        }

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables."""
        config = self.config
        train, validation = (len(part.labels) for part in self._digits)
        tested = len(self._split[1].labels)
        how = {
            "pixel": "a step is a pixel",
            "row": f"a step is a row, of {config.train_side} pixels at every size",
            "permuted": "a step is a pixel, in one shuffled order of the pixels of the size "
            "trained with; the pixels of larger digits that come from one of these come together",
        }[config.order]
        notes = [
            f"Accuracy on {tested} test digits, black and white, resized to the nearest pixel; "
            f"{how}. Trained on {train} digits of {config.train_side} x {config.train_side}; "
            f"tested are the weights of the epoch, of {config.epochs}, that was best on "
            f"{validation} validation digits of this size."
        ]
        if self.config.select_per_side:
            notes.append(
                "Selected on this size: tested are the weights of the epoch that was best on "
                "validation digits of the same size, as the authors' script does; a model of "
                "digits of unknown size cannot be chosen so."
            )
        if self.published:
            notes.append(
                "Published: github.com/dido1998/Recurrent-Independent-Mechanisms, 600 features, "
                "trained on all 60 000 digits; the number of seeds is not given. The paper, "
                "arXiv:1909.10893, gives 90, 73 and 38 % at 16, 19 and 24 for RIMs, 4 of 6 active."
            )
        return notes


def _first(digits: LabelledImages, number: int) -> LabelledImages:
    """The first ``number`` digits; 0: all."""
    return LabelledImages(digits.images[: number or None], digits.labels[: number or None])
