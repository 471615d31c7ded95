"""Stacked MNIST: which digits an image shows (arXiv:2010.08012, section 4.2, Table 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.configs.generated import StackedMNISTConfig
from experiments.data.common import LabelledImages, hold_out, identity
from experiments.data.published.mnist import load_mnist
from experiments.data.stacked_mnist import (
    FRAME,
    TEST_COUNTS,
    StackedDigits,
    evaluation_set,
    shrink,
    train_batches,
)
from experiments.experiment import Curve, Experiment, Published, Row, Selection
from experiments.shared.networks import nfm_options
from lab.reporting.tables import trained_label
from lab.words import plural
from nfm import trace
from nfm.models.stacked_cnn import StackedCNN
from nfm.plots import plot_attention

_EVALUATION_BATCH = 250  # images
_VALIDATION, _TEST = 1, 2  # keep the draws of one seed apart

#: Table 5, per cent, by the digits trained on: for one to five digits, mean and deviation.
_PUBLISHED = {
    "1,3": {
        "cnn": ((99.27, 0.05), (76.7, 1.34), (87.83, 0.02), (62.57, 0.04), (24.27, 1.02)),
        "nfm": ((99.23, 0.03), (88.36, 0.85), (87.78, 0.46), (66.12, 1.86), (29.48, 3.12)),
    },
    "1,5": {
        "cnn": ((99.22, 0.09), (74.69, 2.88), (57.11, 3.57), (75.90, 2.48), (68.87, 4.25)),
        "nfm": ((99.16, 0.04), (84.01, 6.06), (66.58, 5.24), (79.04, 2.37), (71.76, 2.79)),
    },
}


class Batch(NamedTuple):
    """B images with as many digits each."""

    images: Tensor  # (B, 1, 64, 64), 0 to 1
    targets: Tensor  # (B, 10), 0 or 1


class StackedMNISTExperiment(Experiment[StackedMNISTConfig, Batch]):
    """A model names all classes of digits in an image; tested with other numbers of digits.

    Accuracy is the share of images whose set of classes is named exactly. The epoch that is best in
    it on validation images, which have as many digits as in training, is the one that is tested.
    """

    selection = Selection("validation_accuracy")
    curves = (Curve("loss", "loss"), Curve("validation_accuracy", "validation accuracy", "%"))

    def check(self) -> None:
        """Refuse missing digits and models that cannot be built."""
        super().check()
        load_mnist(self.config.data_dir, "test", download=self.config.download)
        _ = self._digits  # those to train on can be missing where those of the test are not

    def make_model(self) -> nn.Module:
        """The model named in the settings."""
        config = self.config
        options = nfm_options(config) if config.model == "nfm" else None
        return StackedCNN(width=config.width, pool=config.pool, nfm=options)

    @property
    def data_memory(self) -> float:
        """Bytes of all validation images, and of the largest other set or batch."""
        config, pixels = self.config, float(FRAME**2)
        validation = pixels * config.validation_images * len(config.counts)
        return validation + pixels * max(5 * config.batch_size, config.test_images)  # and float32

    @property
    def data_identity(self) -> str:
        """Number and checksum of the digits: a folder can hold all of MNIST or a part."""
        folder = self.config.data_dir
        return identity(load_mnist(folder, "train"), load_mnist(folder, "test"))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.config.steps_per_epoch

    @cached_property
    def _digits(self) -> tuple[LabelledImages, LabelledImages]:
        """Digits to train on and to validate on, shrunk."""
        digits = _shrunk(load_mnist(self.config.data_dir, "train"))
        return hold_out(digits, self.config.validation_share)

    @cached_property
    def _validation_sets(self) -> dict[int, StackedDigits]:
        size, (_, digits) = self.config.validation_images, self._digits
        seed = self._seed(_VALIDATION)
        return {
            count: evaluation_set(digits, count, num_images=size, seed=seed)
            for count in self.config.counts
        }

    @property
    def _test_sets(self) -> Iterator[tuple[int, StackedDigits]]:
        digits, size = _shrunk(load_mnist(self.config.data_dir, "test")), self.config.test_images
        for count in TEST_COUNTS:
            yield count, evaluation_set(digits, count, num_images=size, seed=self._seed(_TEST))

    def _seed(self, *stream: int) -> int:
        """A seed for the data functions, which add the number of digits and the batch to it."""
        return int(np.random.SeedSequence((self.config.seed, *stream)).generate_state(1)[0])

    def batches(self, epoch: int) -> Iterator[Batch]:
        """New images; the numbers of digits take turns from batch to batch."""
        made = train_batches(
            self._digits[0],
            self.config.counts,
            batch_size=self.config.batch_size,
            num_batches=self.steps_per_epoch,
            seed=self._seed(0, epoch),
        )
        return (self._batch(part) for part in made)

    def _batch(self, data: StackedDigits) -> Batch:
        images = torch.from_numpy(data.images).to(self.device)
        targets = torch.from_numpy(data.targets).to(self.device)
        return Batch(images.unsqueeze(1).float() / 255, targets.float())

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Binary cross-entropy, mean over images and classes."""
        logits = model(batch.images)
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets)
        return {"loss": loss, "train_accuracy": _exact(logits, batch.targets).float().mean()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on validation images, by number of digits and on all of them."""
        by_count = {n: self._accuracy(model, data) for n, data in self._validation_sets.items()}
        return {
            "validation_accuracy": float(np.mean(list(by_count.values()))),
            **{f"validation_accuracy_{n}": accuracy for n, accuracy in by_count.items()},
        }

    def _accuracy(self, model: nn.Module, data: StackedDigits) -> float:
        """Share of images whose set of classes is named exactly."""
        right = 0
        for start in range(0, len(data.images), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            batch = self._batch(StackedDigits(data.images[part], data.targets[part]))
            right += int(_exact(model(batch.images), batch.targets).sum())
        return right / len(data.images)

    def attention(self, model: nn.Module) -> Figure:
        """Draw what the modules read, mean over some validation images of every kind."""
        with trace(model) as record:
            for data in self._validation_sets.values():
                part = slice(_EVALUATION_BATCH)
                model(self._batch(StackedDigits(data.images[part], data.targets[part])).images)
        return plot_attention(record)

    def test(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on test images with each number of digits."""
        return {f"accuracy_{n}": self._accuracy(model, data) for n, data in self._test_sets}

    @property
    def rows(self) -> Sequence[Row]:
        """A row for each number of digits."""
        return [
            Row(f"accuracy_{n}", trained_label(plural(n, "digit"), n in self.config.counts))
            for n in TEST_COUNTS
        ]

    @property
    def published(self) -> Mapping[str, Mapping[str, Published]]:
        """Table 5, for the two pairs of numbers of digits that are in it."""
        table = _PUBLISHED.get(self.config.digits, {})
        return {
            model: {
                f"accuracy_{n}": Published(*v) for n, v in zip(TEST_COUNTS, numbers, strict=True)
            }
            for model, numbers in table.items()
        }

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables."""
        notes = [
            "Accuracy: share of images of which exactly the classes shown are named. Tested are "
            "the weights of the epoch that was best on validation images with "
            f"{' or '.join(map(str, self.config.counts))} digits.",
        ]
        if self.published:
            config = self.config
            notes.append(
                "Published: Table 5 of arXiv:2010.08012, mean and deviation, there after 300 "
                "epochs with 32 channels at first and all digits of MNIST; here "
                f"{config.epochs} epochs of {config.train_images} images, {config.width} channels, "
                f"digits of {config.data_dir!r}."
            )
        return notes


def _shrunk(digits: LabelledImages) -> LabelledImages:
    """Reduced to the size they are pasted in, once instead of whenever one is drawn."""
    return LabelledImages(shrink(digits.images), digits.labels)


def _exact(logits: Tensor, targets: Tensor) -> Tensor:
    """Which images have every class right, (B,)."""
    return ((logits > 0) == (targets > 0.5)).all(1)
