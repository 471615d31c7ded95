"""Residual GAN on images, its generator with and without NFM (arXiv:2010.08012, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from experiments.configs.images import GANConfig
from experiments.data.common import shuffled
from experiments.experiment import Curve, Row, State
from experiments.shared.distances import Axes, frechet_distance, patch_distance, principal_axes
from experiments.shared.images import (
    KINDS,
    GenerativeExperiment,
    check_images,
    grid,
    parts,
    require_a_batch,
    to_bytes,
    to_tensor,
)
from experiments.shared.networks import nfm_options
from nfm import trace
from nfm.models.gan import Discriminator, Generator, Verdict
from nfm.models.gan_losses import (
    hinge_discriminator_loss,
    hinge_generator_loss,
    infomax_loss,
)
from nfm.plots import plot_attention

_EVALUATION_BATCH = 250  # images
_LATENT_SEED = 0  # of the pictures, the same for every model and seed
_SHOWN, _COLUMNS = 64, 8

_FRECHET, _PATCHES = "frechet_pca", "patch_distance"

Batch = Tensor  # (discriminator steps, B, C, Y, X), values in [-1, 1]


class GAN(nn.Module):
    """A generator with its discriminator."""

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator


class _Real(NamedTuple):
    """Real images that generated ones are compared with, on the CPU, values in [-1, 1]."""

    train: Tensor  # (M, C, Y, X)
    test: Tensor  # (M, C, Y, X)
    axes: Axes  # of training images
    features: Tensor  # (M, K), of the test images


class GANExperiment(GenerativeExperiment[GANConfig, Batch]):
    """A generator learns to make images that a discriminator takes for real.

    A step is one of the generator, after several of the discriminator, each on images of its own.
    Judged with the weights at the end.
    """

    curves = (
        Curve("discriminator_loss", "loss of the discriminator"),
        Curve("loss", "loss of the generator"),
        Curve(_FRECHET, "Frechet distance of principal components"),
        Curve(_PATCHES, "sliced Wasserstein distance of patches"),
    )

    def check(self) -> None:
        """Refuse missing images and models that cannot be built."""
        super().check()
        check_images(self.config)

    def make_model(self) -> nn.Module:
        """Generator and discriminator."""
        config, kind = self.config, KINDS[self.config.dataset]
        nfm = nfm_options(config) if config.model == "nfm" else None
        width = config.width or None
        small = kind.side == 32
        generator = Generator(
            kind.side,
            latent_size=config.latent_size,
            width=width,
            image_channels=kind.channels,
            nfm=nfm,
        )
        discriminator = Discriminator(
            kind.side,
            width=max(1, width // 2) if width and small else width,
            image_channels=kind.channels,
            projection_size=config.projection_size,
        )
        if not config.has_infomax:  # which would count among the parameters
            del discriminator.local_critic, discriminator.global_critic
        return GAN(generator, discriminator)

    @property
    def data_memory(self) -> float:
        """Bytes of the real images for all steps of the discriminator, as float32."""
        config, kind = self.config, KINDS[self.config.dataset]
        values = 4.0 * kind.side**2 * kind.channels
        return values * config.discriminator_steps * config.batch_size

    def make_optimizers(self, model: nn.Module) -> dict[str, Optimizer]:
        """One optimiser for each of the two networks."""
        config = self.config
        assert isinstance(model, GAN)
        return {
            name: Adam(
                network.parameters(),
                lr=config.learning_rate,
                betas=(config.beta1, config.beta2),
                weight_decay=config.weight_decay,
            )
            for name, network in model.named_children()
        }

    @cached_property
    def _real(self) -> _Real:
        """Training and test images: as many as are generated, or all there are."""
        test = self._test_images
        size = min(self.config.evaluation_images, len(test), len(self._train_images))
        train = _scaled(to_tensor(self._train_images[:size], torch.device("cpu")))
        real = _scaled(to_tensor(test[:size], torch.device("cpu")))
        axes = principal_axes(train)
        return _Real(train, real, axes, axes.features(real))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the generator."""
        return self.config.steps_per_epoch

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Real images for all steps of the discriminator before one of the generator."""
        config, rng = self.config, self.rng(epoch)
        drawn = self._endless(rng)
        for _ in range(config.steps_per_epoch):
            index = np.stack([next(drawn) for _ in range(config.discriminator_steps)])
            images = to_tensor(self._train_images[index.ravel()], self.device)
            yield _scaled(images).reshape(*index.shape, *images.shape[1:])

    def _endless(self, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Indices of full batches; each image once before any comes again."""
        images, size = len(self._train_images), self.config.batch_size
        require_a_batch(images, size)  # else this would go on for ever without yielding any
        while True:
            yield from shuffled(rng, images, size, drop_last=True)

    def train_step(self, state: State, batch: Batch) -> dict[str, float | Tensor]:
        """Some steps of the discriminator and one of the generator."""
        model = state.model
        assert isinstance(model, GAN)
        sums: dict[str, Tensor] = {}
        for images in batch:
            with state.autocast():
                scalars = self._discriminator_loss(model, images)
            state.descend(scalars["discriminator_loss"], "discriminator")
            for name, value in scalars.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        model.discriminator.requires_grad_(False)  # its gradients are not needed
        try:
            with state.autocast():
                scalars = self.loss(model, batch[-1], state.generator)
            state.descend(scalars["loss"], "generator")
        finally:
            model.discriminator.requires_grad_(True)
        return {
            **{name: total / len(batch) for name, total in sums.items()},
            **{name: value.detach() for name, value in scalars.items()},
        }

    def _discriminator_loss(self, model: GAN, images: Tensor) -> dict[str, Tensor]:
        """Hinge loss, and for InfoMax-GAN that of features of real images."""
        with torch.no_grad():
            generated = model.generator.sample(len(images))
        real, fake = model.discriminator(images), model.discriminator(generated)
        loss = hinge_discriminator_loss(real.score, fake.score)
        return self._with_infomax(model, loss, real, "discriminator_loss", "infomax_real")

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The generator's: hinge loss, and for InfoMax-GAN that of features of its images.

        Args:
            model: both networks, in training mode.
            batch: tells how many images are generated: its second to last sizes are those of one.
            generator: not used: latent vectors are drawn on the CPU by torch's own generator, so
                that a seed means the same on every device.
        """
        assert isinstance(model, GAN)
        fake = model.discriminator(model.generator.sample(batch.shape[-4]))
        loss = hinge_generator_loss(fake.score)
        return self._with_infomax(model, loss, fake, "loss", "infomax_generated")

    def _with_infomax(
        self, model: GAN, loss: Tensor, verdict: Verdict, name: str, infomax_name: str
    ) -> dict[str, Tensor]:
        if not self.config.has_infomax:
            return {name: loss}
        infomax = infomax_loss(*model.discriminator.project(verdict.features))
        return {name: loss + self.config.infomax_weight * infomax, infomax_name: infomax}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Distances between generated and test images."""
        assert isinstance(model, GAN)
        return self._distances(self._generated(model, len(self._real.test)))

    def _generated(self, model: GAN, count: int) -> Tensor:
        """New images, on the CPU."""
        made = [
            model.generator.sample(part.stop - part.start).cpu()
            for part in parts(count, _EVALUATION_BATCH)
        ]
        return torch.cat(made)

    def _distances(self, images: Tensor) -> dict[str, float]:
        real = self._real
        return {
            _FRECHET: frechet_distance(real.axes.features(images), real.features),
            _PATCHES: patch_distance(real.test, images),
        }

    def test(self, model: nn.Module) -> dict[str, float]:
        """The distances, also of training images, and the discriminator's hinge loss."""
        assert isinstance(model, GAN)
        real = self._real
        images = self._generated(model, len(real.test))
        floor = {f"{name}_real": value for name, value in self._distances(real.train).items()}
        loss = hinge_discriminator_loss(self._scores(model, real.test), self._scores(model, images))
        return {**self._distances(images), **floor, "hinge_loss": float(loss)}

    def _scores(self, model: GAN, images: Tensor) -> Tensor:
        found = [
            model.discriminator(images[part].to(self.device)).score.cpu()
            for part in parts(len(images), _EVALUATION_BATCH)
        ]
        return torch.cat(found)

    def attention(self, model: nn.Module) -> Figure:
        """Draw what the modules of the generator read, mean over some latent vectors."""
        assert isinstance(model, GAN)
        with trace(model.generator) as record:
            model.generator.sample(_SHOWN)
        return plot_attention(record)

    def pictures(self, model: nn.Module) -> Mapping[str, NDArray[np.uint8]]:
        """Images of 64 latent vectors, always the same ones."""
        assert isinstance(model, GAN)
        latent = torch.Generator().manual_seed(_LATENT_SEED)
        images = model.generator.sample(_SHOWN, generator=latent)
        return {"samples": grid(to_bytes((images + 1) / 2), _COLUMNS)}

    @property
    def rows(self) -> Sequence[Row]:
        """Distances of generated images, and of training images for comparison."""
        frechet, patches = "Frechet distance of pixels", "sliced Wasserstein distance of patches"
        real = "training images instead"
        return [
            Row(_FRECHET, frechet, "", "lower", 0.0),
            Row(f"{_FRECHET}_real", f"{frechet}, {real}", "", "lower", 0.0, drawn=False),
            Row(_PATCHES, patches, "", "lower", 0.0),
            Row(f"{_PATCHES}_real", f"{patches}, {real}", "", "lower", 0.0, drawn=False),
            Row(
                "hinge_loss",
                "hinge loss of the discriminator on test images",
                "",
                "lower",
                0.0,
                drawn=False,
            ),
        ]

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables."""
        return [
            "These distances are not FID and cannot be compared with published ones: they need no "
            "trained network. The Frechet distance is between normal distributions fitted to the "
            "first 64 principal components of pixels. The sliced Wasserstein distance is between "
            "patches of 7 x 7 pixels in a Laplacian pyramid, times 1000 (after arXiv:1710.10196). "
            f"Both compare {self.config.evaluation_images} generated images, or fewer if there are "
            "fewer real ones, with test images; 'training images instead' compares as many "
            "training images with them.",
            "A step is one step of the generator after "
            f"{self.config.discriminator_steps} of the discriminator. Parameters are those of both "
            "networks. Hinge losses of two discriminators do not tell which generator is better.",
            "Pictures of the same latent vectors: samples-STEPS.png in the folder of a run.",
        ]


def _scaled(images: Tensor) -> Tensor:
    """Images with values from 0 to 255, scaled to [-1, 1]."""
    return images / 127.5 - 1
