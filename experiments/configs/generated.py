"""Settings of the tasks on generated images: Sort-of-CLEVR and stacked MNIST.

Nothing in here may import torch, see :mod:`experiments.registry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.configs.base import DigitsConfig, ExperimentConfig, NFMConfig
from lab.settings import ConfigError, changed, option


@dataclass(frozen=True, kw_only=True)
class SortOfClevrConfig(NFMConfig):
    """Settings of Sort-of-CLEVR; defaults as in arXiv:2010.08012, appendix D."""

    task: ClassVar[str] = "sort-of-clevr"

    model: Literal["cnn", "nfm", "rn"] = option(
        "cnn", "Network", "CNN with MLP, the same with NFM, or a Relation Network."
    )
    channels: int = option(24, "Network", "Channels of each convolution.", low=1)
    hidden_size: int = option(
        256, "Network", "Features of the layers after the convolutions.", low=1
    )
    held_out: int = option(
        0,
        "Data",
        "Combinations of colour and shape that training never shows; the seed decides which.",
        low=0,
        high=6,
    )
    train_images: int = option(9800, "Data", "Images trained on, 20 questions each.", low=1)
    validation_images: int = option(1000, "Data", "Validation images.", low=1)
    test_images: int = option(2000, "Data", "Test images.", low=1)
    questions: int = option(
        20, "Training", "Questions drawn per image and step; 20: all.", low=1, high=20
    )
    epochs: int = changed(ExperimentConfig, "epochs", 250)
    key_size: int = changed(NFMConfig, "key_size", 16)
    value_size: int = changed(NFMConfig, "value_size", 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size > self.train_images:
            rule = f"must not be above the {self.train_images} training images"
            raise ConfigError("batch_size", f"{rule}; got {self.batch_size}.")


@dataclass(frozen=True, kw_only=True)
class StackedMNISTConfig(NFMConfig, DigitsConfig):
    """Settings of stacked MNIST; defaults as in arXiv:2010.08012, section 4.2 and appendix C."""

    task: ClassVar[str] = "stacked-mnist"

    model: Literal["cnn", "nfm"] = option(
        "cnn", "Network", "Nine convolutions, or the same with NFM."
    )
    width: int = option(
        32, "Network", "Channels of the first convolution; they double four times.", low=1
    )
    pool: Literal["mean", "none"] = option(
        "mean", "Network", "Input of the classifier: the mean of the last map, or all of it."
    )
    digits: str = option(
        "1,3", "Data", "Numbers of digits per image in training, such as 1,3 or 1,5."
    )
    train_images: int = option(20_000, "Data", "Images per epoch; they are new in each.", low=1)
    validation_images: int = option(
        1000, "Data", "Validation images per number of digits; they select the best epoch.", low=1
    )
    test_images: int = option(2000, "Data", "Test images per number of digits.", low=1)
    epochs: int = changed(ExperimentConfig, "epochs", 300)
    key_size: int = changed(NFMConfig, "key_size", 16)
    value_size: int = changed(NFMConfig, "value_size", 16)
    batch_norm: bool = changed(NFMConfig, "batch_norm", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = sorted(self.digits.split(","))
        if not all(count in "123456789" and len(count) == 1 for count in counts):
            rule = "must be numbers from 1 to 9 with commas between them"
            raise ConfigError("digits", f"{rule}, such as 1,3; got {self.digits!r}.")
        if len(set(counts)) < len(counts):
            raise ConfigError("digits", f"must name each number once; got {self.digits!r}.")
        object.__setattr__(self, "digits", ",".join(counts))  # 3,1 trains what 1,3 does
        if self.steps_per_epoch < len(counts):
            rule = f"must give each of the numbers of digits {self.digits} a batch"
            raise ConfigError("train_images", f"{rule}; got {self.train_images}.")

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of digits in training images."""
        return tuple(int(count) for count in self.digits.split(","))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; images that would not fill one are left out."""
        return self.train_images // self.batch_size
