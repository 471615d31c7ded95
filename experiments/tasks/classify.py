"""Classification of images, also occluded ones (arXiv:2010.08012, section 4.4, Table 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.configs.images import ClassifyConfig
from experiments.data.augment import draw_mixup, occlude, random_crop, random_flip
from experiments.data.common import LabelledImages, identity, shuffled
from experiments.experiment import Curve, Experiment, Published, Row
from experiments.shared.images import (
    KINDS,
    Levels,
    check_images,
    levels_of,
    load_images,
    parts,
    to_tensor,
)
from experiments.shared.networks import nfm_options
from nfm.models.preact_resnet import (
    PreActResNet,
    preact_resnet18,
    preact_resnet34,
    preact_resnet50,
)
from nfm.plots import plot_attention
from nfm.trace import random_attention, trace

_EVALUATION_BATCH = 250  # images
_BOXES_SEED = 0  # of the boxes, the same for every model and seed

_ACCURACY, _OCCLUDED, _RANDOM = "accuracy", "accuracy_occluded", "accuracy_random_attention"

_NETWORKS: dict[str, Callable[..., PreActResNet]] = {
    "18": preact_resnet18,
    "34": preact_resnet34,
    "50": preact_resnet50,
}

#: Table 2, per cent, by data set and depth: plain, then with NFM.
_TABLE_2: dict[tuple[str, str], tuple[Published, Published]] = {
    ("cifar10", "18"): (Published(96.27, 0.2), Published(96.56, 0.09)),
    ("cifar10", "34"): (Published(96.79, 0.1), Published(97.05, 0.1)),
    ("cifar10", "50"): (Published(97.31, 0.1), Published(97.58, 0.2)),
    ("cifar100", "18"): (Published(78.15, 0.1), Published(78.66, 0.3)),
    ("cifar100", "34"): (Published(80.13, 0.3), Published(80.77, 0.1)),
    ("tiny-imagenet", "18"): (Published(57.12, 0.3), Published(58.32, 0.2)),
}


class Batch(NamedTuple):
    """B images, each a mixture of two: of the one's class to a share, else of the other's."""

    images: Tensor  # (B, C, Y, X), normalised
    labels: Tensor  # (B,)
    other_labels: Tensor  # (B,)
    share: float


class ClassifyExperiment(Experiment[ClassifyConfig, Batch]):
    """A PreActResNet names the class of an image.

    Judged on the test images while it is trained and in the end; as the weights of the end are the
    ones that count, this chooses nothing.
    """

    curves = (Curve("loss", "loss"), Curve(_ACCURACY, "test accuracy", "%"))

    def check(self) -> None:
        """Refuse missing images and models that cannot be built."""
        super().check()
        check_images(self.config)

    def make_model(self) -> nn.Module:
        """The model named in the settings."""
        config, kind = self.config, KINDS[self.config.dataset]
        return _NETWORKS[config.depth](
            kind.classes,
            planes=config.planes,
            in_channels=kind.channels,
            nfm=nfm_options(config) if config.model == "nfm" else None,
        )

    @cached_property
    def _train_data(self) -> LabelledImages:
        return load_images(self.config, "train")

    @cached_property
    def _test_data(self) -> LabelledImages:
        return load_images(self.config, "test")

    @property
    def data_identity(self) -> str:
        """Number and checksum of the images and classes."""
        return identity(self._train_data, self._test_data)

    @cached_property
    def _levels(self) -> Levels:
        return levels_of(self._train_data.images)

    @property
    def steps_per_epoch(self) -> int:
        """Batches; the last one may be smaller."""
        return math.ceil(len(self._train_data.labels) / self.config.batch_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Each image once, shifted, mirrored if its kind allows it, and mixed with another."""
        config, rng, data = self.config, self.rng(epoch), self._train_data
        for index in shuffled(rng, len(data.labels), config.batch_size):
            images = random_crop(data.images[index], rng, padding=config.crop_padding)
            if KINDS[config.dataset].mirrored:
                images = random_flip(images, rng)
            share, order = draw_mixup(len(index), rng, alpha=config.mixup)
            single = self._normalised(images)
            other = torch.from_numpy(order).to(self.device)
            labels = torch.from_numpy(data.labels[index]).to(self.device)
            mixed = share * single + (1 - share) * single[other] if share < 1 else single
            yield Batch(mixed, labels, labels[other], share)

    def _normalised(self, images: NDArray[np.uint8]) -> Tensor:
        """Every channel with mean 0 and deviation 1 over the training set."""
        mean, deviation = (
            torch.from_numpy(level).to(self.device)[:, None, None] for level in self._levels
        )
        return (to_tensor(images, self.device) - mean) / deviation

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy with both classes of each mixture, by their shares."""
        logits, share = model(batch.images), batch.share
        first = F.cross_entropy(logits, batch.labels)
        second = F.cross_entropy(logits, batch.other_labels)
        return {"loss": share * first + (1 - share) * second}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on the test images."""
        return {_ACCURACY: self._accuracy(model)}

    def _accuracy(self, model: nn.Module, boxes: np.random.Generator | None = None) -> float:
        """Share of test images that are named rightly, each behind a box if boxes are drawn."""
        data, right = self._test_data, 0
        for part in parts(len(data.labels), _EVALUATION_BATCH):
            images = data.images[part]
            inputs = self._normalised(images)
            if boxes is not None:
                # As in Cutout, the box is the mean of each channel, 0 after normalisation.
                shown = occlude(
                    np.ones_like(images[..., :1]), boxes, size=self.config.occlusion_size
                )
                inputs = inputs * to_tensor(shown, self.device)
            named = model(inputs).argmax(1).cpu().numpy()
            right += int((named == data.labels[part]).sum())
        return right / len(data.labels)

    def attention(self, model: nn.Module) -> Figure:
        """Draw what the modules read, mean over some test images."""
        images = self._normalised(self._test_data.images[:_EVALUATION_BATCH])
        with trace(model) as record:
            model(images)
        return plot_attention(record)

    def test(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on test images as they are, behind a box, and with attention left to chance."""
        found = {
            _ACCURACY: self._accuracy(model),
            _OCCLUDED: self._accuracy(model, np.random.default_rng(_BOXES_SEED)),
        }
        if self.config.model == "nfm":
            with random_attention(model):
                found[_RANDOM] = self._accuracy(model)
        return found

    @property
    def rows(self) -> Sequence[Row]:
        """Accuracy on all images, occluded ones, and with random attention."""
        side = self.config.occlusion_size
        return [
            Row(_ACCURACY, "accuracy"),
            Row(_OCCLUDED, f"with a {side} x {side} box on each image"),
            Row(_RANDOM, "with random attention"),
        ]

    @property
    def published(self) -> Mapping[str, Mapping[str, Published]]:
        """Table 2, and what section 4.4 says in passing."""
        config = self.config
        table = _TABLE_2.get((config.dataset, config.depth))
        if table is None:
            return {}
        plain, nfm = ({_ACCURACY: number} for number in table)
        if (config.dataset, config.depth) == ("cifar10", "18"):
            nfm[_RANDOM] = Published(88.5)
            if config.occlusion_size == 16:
                plain[_OCCLUDED], nfm[_OCCLUDED] = Published(82.46), Published(84.11)
        return {"cnn": plain, "nfm": nfm}

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables."""
        notes = [
            "Accuracy on the test images with the weights of the last epoch. The box covers a "
            "square around a random pixel of each image with the mean colour, cut at the border; "
            "the boxes are the same for every model and seed.",
            "Random attention: the scores of the trained modules are replaced by draws from a "
            "normal distribution.",
        ]
        if self.published:
            notes.append(
                "Published: Table 2 of arXiv:2010.08012, mean and deviation, and numbers in its "
                "section 4.4; the means there are also over the last ten of 600 epochs, with 64 "
                "planes."
            )
        return notes
