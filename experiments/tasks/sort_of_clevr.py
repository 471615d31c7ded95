"""Sort-of-CLEVR: questions on an image (arXiv:2010.08012, section 4.3, Tables 6 and 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.configs.generated import SortOfClevrConfig
from experiments.data.clevr_scenes import IMAGE_SIZE
from experiments.data.common import shuffled
from experiments.data.sort_of_clevr import (
    NON_RELATIONAL,
    QUESTION_TEXTS,
    RELATIONAL,
    SortOfClevr,
    Split,
    chance_levels,
    held_out_combinations,
    make_sort_of_clevr,
)
from experiments.experiment import Curve, Experiment, Published, Row
from experiments.shared.networks import nfm_options
from nfm import trace
from nfm.models.relational import CNN_MLP, RelationNetwork
from nfm.plots import plot_attention

_EVALUATION_BATCH = 100  # images

_RELATIONAL, _OTHER = "accuracy_relational", "accuracy_non_relational"

#: Tables 6 and 7, per cent, by held-out combinations: relational, then non-relational.
_PUBLISHED: dict[int, dict[str, tuple[Published, Published]]] = {
    0: {
        "cnn": (Published(68.26, 0.61), Published(71.78, 9.3)),
        "nfm": (Published(74.95, 1.58), Published(79.37, 2.0)),
    },
    1: {
        "cnn": (Published(57.67), Published(57.0)),
        "rn": (Published(50.67), Published(48.0)),
        "nfm": (Published(54.67), Published(59.0)),
    },
    2: {
        "cnn": (Published(47.0), Published(54.33)),
        "rn": (Published(45.0), Published(43.33)),
        "nfm": (Published(46.0), Published(57.0)),
    },
    3: {
        "cnn": (Published(20.66), Published(42.33)),
        "rn": (Published(40.67), Published(46.0)),
        "nfm": (Published(38.33), Published(49.67)),
    },
}


class Batch(NamedTuple):
    """B images with Q questions each."""

    images: Tensor  # (B, 3, 75, 75), 0 to 1
    questions: Tensor  # (B, Q, 11)
    answers: Tensor  # (B, Q)


class SortOfClevrExperiment(Experiment[SortOfClevrConfig, Batch]):
    """A model is asked questions of six kinds on images of six objects.

    Images, questions and held-out combinations all follow from the seed. Judged on the test images,
    which show all combinations, with the weights at the end.
    """

    curves = (
        Curve("loss", "loss"),
        Curve(_RELATIONAL, "validation accuracy, relational", "%"),
        Curve(_OTHER, "validation accuracy, non-relational", "%"),
    )

    def make_model(self) -> nn.Module:
        """The model named in the settings."""
        config = self.config
        kind = RelationNetwork if config.model == "rn" else CNN_MLP
        options = nfm_options(config) if config.model == "nfm" else None
        return kind(channels=config.channels, hidden=config.hidden_size, nfm=options)

    @property
    def data_memory(self) -> float:
        """Bytes of all images, and of a batch of them."""
        config, values = self.config, 3.0 * IMAGE_SIZE**2
        images = config.train_images + config.validation_images + config.test_images
        return values * (images + 4 * config.batch_size)  # bytes; float32

    @property
    def steps_per_epoch(self) -> int:
        """Batches; images that would not fill one are left out."""
        return self.config.train_images // self.config.batch_size

    @cached_property
    def train_data(self) -> SortOfClevr:
        """The images trained on."""
        return self._make("train", self.config.train_images)

    @cached_property
    def validation_data(self) -> SortOfClevr:
        """Images as in training."""
        return self._make("validation", self.config.validation_images)

    @cached_property
    def test_data(self) -> SortOfClevr:
        """Images with all combinations."""
        return self._make("test", self.config.test_images)

    def _make(self, split: Split, images: int) -> SortOfClevr:
        config = self.config
        held_out = held_out_combinations(config.held_out, config.seed)
        return make_sort_of_clevr(images, seed=config.seed, split=split, held_out=held_out)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Each image once, with questions drawn from its 20."""
        config, rng, data = self.config, self.rng(epoch), self.train_data
        for index in shuffled(rng, config.train_images, config.batch_size, drop_last=True):
            asked = np.arange(20)
            if config.questions < 20:
                asked = np.sort(rng.permutation(20)[: config.questions])
            yield self._batch(data, index, asked)

    def _batch(
        self, data: SortOfClevr, index: NDArray[np.int64], asked: NDArray[np.int64]
    ) -> Batch:
        images = torch.from_numpy(data.images[index]).to(self.device)
        questions = torch.from_numpy(data.questions[index][:, asked]).to(self.device)
        answers = torch.from_numpy(data.answers[index][:, asked]).to(self.device)
        # Channels first; in memory they stay last, in which convolutions are quick too.
        return Batch(images.permute(0, 3, 1, 2).float() / 255, questions.float(), answers.long())

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy, mean over all questions."""
        logits = model(batch.images, batch.questions)  # (B, Q, 10)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
        right = logits.argmax(-1) == batch.answers
        return {"loss": loss, "train_accuracy": right.float().mean()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracies on the validation images."""
        data = self.validation_data
        right, relational = self._right(model, data), np.isin(data.kinds, RELATIONAL)
        return {
            _RELATIONAL: float(right[relational].mean()),
            _OTHER: float(right[~relational].mean()),
        }

    def _right(self, model: nn.Module, data: SortOfClevr) -> NDArray[np.bool_]:
        """Which questions are answered rightly, (M, 20)."""
        every, found = np.arange(20), []
        for start in range(0, len(data.images), _EVALUATION_BATCH):
            index = np.arange(start, min(start + _EVALUATION_BATCH, len(data.images)))
            batch = self._batch(data, index, every)
            logits = model(batch.images, batch.questions)
            found.append((logits.argmax(-1) == batch.answers).cpu().numpy())
        return np.concatenate(found)

    def attention(self, model: nn.Module) -> Figure:
        """Draw what the modules read, mean over some validation images."""
        data = self.validation_data
        index = np.arange(min(_EVALUATION_BATCH, len(data.images)))
        batch = self._batch(data, index, np.arange(20))
        with trace(model) as record:
            model(batch.images, batch.questions)
        return plot_attention(record)

    def test(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on each row's share of the test questions; none where it is empty."""
        right, masks = self._right(model, self.test_data), self._masks(self.test_data)
        return {key: float(right[mask].mean()) for key, mask in masks.items() if mask.any()}

    def _masks(self, data: SortOfClevr) -> dict[str, NDArray[np.bool_]]:
        """The questions of each row."""
        relational = np.isin(data.kinds, RELATIONAL)
        masks = {_RELATIONAL: relational, _OTHER: ~relational}
        if self.config.held_out:
            touched = data.touches_held_out
            masks |= {
                f"{_RELATIONAL}_held_out": relational & touched,
                f"{_OTHER}_held_out": ~relational & touched,
                f"{_RELATIONAL}_seen": relational & ~touched,
                f"{_OTHER}_seen": ~relational & ~touched,
            }
        return masks | {f"accuracy_kind_{i}": data.kinds == i for i in range(len(QUESTION_TEXTS))}

    @property
    def rows(self) -> Sequence[Row]:
        """Accuracy of relational and other questions, those on held-out combinations, each kind."""
        pairs = ((_RELATIONAL, "relational"), (_OTHER, "non-relational"))
        rows = [Row(key, label) for key, label in pairs]
        if self.config.held_out:
            rows += [Row(f"{key}_held_out", f"{label}, on held-out") for key, label in pairs]
            rows += [Row(f"{key}_seen", f"{label}, on others") for key, label in pairs]
        texts = [text.format("...") for text in QUESTION_TEXTS]
        return [
            *rows,
            *(Row(f"accuracy_kind_{i}", text, drawn=False) for i, text in enumerate(texts)),
        ]

    @property
    def published(self) -> Mapping[str, Mapping[str, Published]]:
        """Table 6, or with held-out combinations Table 7."""
        table = _PUBLISHED.get(self.config.held_out, {})
        return {
            model: dict(zip((_RELATIONAL, _OTHER), numbers, strict=True))
            for model, numbers in table.items()
        }

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables."""
        shares = [
            f"{name} {100 * guess:.1f} % and {100 * frequent:.1f} %"
            for name, kinds in (("relational", RELATIONAL), ("non-relational", NON_RELATIONAL))
            for guess, frequent in [chance_levels(self.test_data, kinds)]
        ]
        notes = [
            "Chance, by guessing among the answers that make sense and by always giving the most "
            f"frequent one of each kind of question: {', '.join(shares)}.",
        ]
        if self.config.held_out:
            notes.append(
                f"{self.config.held_out} of the 12 combinations of colour and shape were never "
                "shown in training; which ones depends on the seed. 'On held-out' are the test "
                "questions whose answer concerns such an object."
            )
            published = "Table 7 of arXiv:2010.08012"
        else:
            published = "Table 6 of arXiv:2010.08012, mean and deviation"
        if self.published:
            config = self.config
            notes.append(
                f"Published: {published}, three trials, there after 250 epochs with 24 channels; "
                f"here {config.epochs} epochs of {config.train_images} images, {config.channels} "
                "channels."
            )
        return notes
