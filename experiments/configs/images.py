"""Settings of the tasks on photographs or digits: classification, GAN and VAE.

Nothing in here may import torch, see :mod:`experiments.registry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.configs.base import ExperimentConfig, NFMConfig, Schedule
from lab.settings import ConfigError, changed, option

Dataset = Literal["mnist", "cifar10", "cifar100", "tiny-imagenet"]


@dataclass(frozen=True, kw_only=True)
class ImageConfig(NFMConfig):
    """Adds the data set of images."""

    dataset: Dataset = option(
        "cifar10",
        "Data",
        "Images; the digits of mnist are padded to 32 x 32, tiny-imagenet has 64 x 64.",
    )
    data_dir: str = option(
        "data",
        "Data",
        "Folder with the published files, as archive or unpacked, or one around it.",
        has_effect=False,
    )
    download: bool = option(
        False, "Data", "Fetch files of mnist that are missing there.", has_effect=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.download and self.dataset != "mnist":
            raise ConfigError("download", f"can fetch mnist alone, not {self.dataset}.")


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(ImageConfig):
    """Settings of classification; defaults as in arXiv:2010.08012, appendix B."""

    task: ClassVar[str] = "classify"

    model: Literal["cnn", "nfm"] = option("cnn", "Network", "PreActResNet, or the same with NFM.")
    depth: Literal["18", "34", "50"] = option("18", "Network", "Layers of the PreActResNet.")
    planes: int = option(
        64, "Network", "Channels of the first stage (of its 3x3 convolutions); they double.", low=1
    )
    mixup: float = option(
        1.0, "Training", "Alpha of input mixup, which mixes images and losses; 0: no mixup.", low=0
    )
    crop_padding: int = option(
        4, "Training", "Largest random shift of an image in pixels; 0: no shift.", low=0
    )
    occlusion_size: int = option(
        16, "Data", "Side in pixels of the box over each test image, in one row.", low=1
    )
    epochs: int = changed(ExperimentConfig, "epochs", 600)
    batch_size: int = changed(ExperimentConfig, "batch_size", 128)
    optimizer: Literal["adam", "adamw", "sgd"] = changed(ExperimentConfig, "optimizer", "sgd")
    learning_rate: float = changed(ExperimentConfig, "learning_rate", 0.1)
    weight_decay: float = changed(ExperimentConfig, "weight_decay", 1e-4)
    schedule: Schedule = changed(ExperimentConfig, "schedule", "steps")


@dataclass(frozen=True, kw_only=True)
class GANConfig(ImageConfig):
    """Settings of the GAN; defaults as in Mimicry (arXiv:2005.02494)."""

    task: ClassVar[str] = "gan"

    model: Literal["sngan", "infomax", "nfm"] = option(
        "sngan", "Network", "SNGAN, InfoMax-GAN, or InfoMax-GAN with NFM in the generator."
    )
    width: int = option(
        0,
        "Network",
        "Channels of the generator's first map; 0: 256 for 32 pixels, 1024 for 64. The "
        "discriminator has half as many for 32 pixels, as many for 64.",
        low=0,
    )
    latent_size: int = option(128, "Network", "Features of a latent vector.", low=1)
    projection_size: int = option(
        1024,
        "Network",
        "Features of the space in which InfoMax compares places with images.",
        low=1,
    )
    infomax_weight: float = option(
        0.2, "Training", "Weight of the InfoMax loss in both losses.", low=0
    )
    discriminator_steps: int = option(
        5, "Training", "Steps of the discriminator before each of the generator.", low=1
    )
    beta1: float = option(0.0, "Training", "adam: decay of the mean gradient.", low=0, high=0.9999)
    beta2: float = option(
        0.9, "Training", "adam: decay of the mean squared gradient.", low=0, high=0.999999
    )
    steps_per_epoch: int = option(
        1000, "Training", "Steps of the generator that count as an epoch.", low=1
    )
    evaluation_images: int = option(
        2000, "Data", "Generated images to compare with test images.", low=2
    )
    epochs: int = option(100, "Training", "Epochs of --steps-per-epoch steps.", low=1)
    optimizer: Literal["adam"] = changed(ExperimentConfig, "optimizer", "adam")
    learning_rate: float = changed(ExperimentConfig, "learning_rate", 2e-4)
    schedule: Schedule = changed(ExperimentConfig, "schedule", "linear")
    evaluate_every: int = option(
        1, "Training", "Epochs between two evaluations, each with a row and a picture.", low=1
    )

    @property
    def has_infomax(self) -> bool:
        """Whether the discriminator also compares features."""
        return self.model != "sngan"


@dataclass(frozen=True, kw_only=True)
class VAEConfig(ImageConfig):
    """Settings of the VAE; arXiv:2010.08012 names its encoder, but no settings."""

    task: ClassVar[str] = "vae"

    model: Literal["cnn", "nfm"] = option(
        "cnn", "Network", "Convolutional VAE, or the same with NFM in the encoder."
    )
    width: int = option(32, "Network", "Channels of the first stage; they double.", low=1)
    stages: int = option(3, "Network", "Stages, each of which halves the image.", low=1, high=4)
    latent_size: int = option(32, "Network", "Features of a latent vector.", low=1)
    dataset: Dataset = changed(ImageConfig, "dataset", "mnist")
    epochs: int = changed(ExperimentConfig, "epochs", 50)
    batch_size: int = changed(ExperimentConfig, "batch_size", 128)
    key_size: int = changed(NFMConfig, "key_size", 16)
    value_size: int = changed(NFMConfig, "value_size", 16)
