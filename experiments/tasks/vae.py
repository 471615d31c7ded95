"""Variational autoencoder of images, its encoder with and without NFM (arXiv:1312.6114)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.configs.images import VAEConfig
from experiments.data.common import shuffled
from experiments.experiment import Curve, Row
from experiments.shared.images import (
    KINDS,
    GenerativeExperiment,
    check_images,
    grid,
    parts,
    side_by_side,
    to_bytes,
    to_tensor,
)
from experiments.shared.networks import nfm_options
from nfm import trace
from nfm.models.vae import VAE, elbo
from nfm.plots import plot_attention

_EVALUATION_BATCH = 250  # images
_NOISE_SEED = 0  # of what is added to test images, and of the latent vectors that are pictured
_SHOWN, _COLUMNS = 32, 8

Batch = Tensor  # (B, C, Y, X), values in [0, 1]


class VAEExperiment(GenerativeExperiment[VAEConfig, Batch]):
    """An encoder and a decoder learn a bound on the likelihood of images.

    Digits are probabilities of a white pixel (Bernoulli). Other images are whole numbers, made
    continuous by uniform noise, of a normal distribution with one learned deviation. Judged on the
    test images with the weights at the end.
    """

    curves = (
        Curve("loss", "negative ELBO in training, nats"),
        Curve("nats", "negative ELBO on test images, nats"),
    )

    def check(self) -> None:
        """Refuse missing images and models that cannot be built."""
        super().check()
        check_images(self.config)

    @property
    def _is_binary(self) -> bool:
        return self.config.dataset == "mnist"

    def make_model(self) -> nn.Module:
        """The model named in the settings."""
        config, kind = self.config, KINDS[self.config.dataset]
        return VAE(
            image_size=kind.side,
            image_channels=kind.channels,
            latent_size=config.latent_size,
            width=config.width,
            stages=config.stages,
            likelihood="bernoulli" if self._is_binary else "gaussian",
            nfm=nfm_options(config) if config.model == "nfm" else None,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches; the last one may be smaller."""
        return math.ceil(len(self._train_images) / self.config.batch_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Each image once."""
        rng = self.rng(epoch)
        for index in shuffled(rng, len(self._train_images), self.config.batch_size):
            yield self._values(self._train_images[index], rng)

    def _values(self, images: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
        """Bytes as values in [0, 1], with uniform noise of one byte where they are no shares."""
        values = to_tensor(images, self.device)
        if self._is_binary:
            return values / 255
        noise = torch.from_numpy(rng.random(images.shape, dtype=np.float32))
        return (values + noise.to(self.device).permute(0, 3, 1, 2)) / 256

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Negative ELBO per image, and its two terms.

        Args:
            model: in training mode.
            batch: images.
            generator: not used: the noise is drawn on the CPU by torch's own generator, so that a
                seed means the same on every device.
        """
        terms = elbo(batch, model(batch))
        offset = self._offset
        return {
            "loss": terms.loss + offset,
            "reconstruction": terms.reconstruction.mean() + offset,
            "kl": terms.kl.mean(),
        }

    @property
    def _dimensions(self) -> int:
        kind = KINDS[self.config.dataset]
        return kind.side**2 * kind.channels

    @property
    def _offset(self) -> float:
        """Nats from a density of values in [0, 1] to the probability of bytes."""
        return 0.0 if self._is_binary else self._dimensions * math.log(256)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Negative ELBO on the test images, in nats per image and in bits per value."""
        rng = np.random.default_rng(_NOISE_SEED)
        total = torch.zeros(2, dtype=torch.float64)
        for part in parts(len(self._test_images), _EVALUATION_BATCH):
            images = self._values(self._test_images[part], rng)
            terms = elbo(images, model(images))
            total += torch.stack([term.double().sum().cpu() for term in terms])
        reconstruction, kl = (total / len(self._test_images)).tolist()
        nats = reconstruction + self._offset + kl
        return {
            "nats": nats,
            "bits_per_dim": nats / (self._dimensions * math.log(2)),
            "test_reconstruction": reconstruction + self._offset,
            "test_kl": kl,
        }

    def attention(self, model: nn.Module) -> Figure:
        """Draw what the modules of the encoder read, mean over some test images."""
        images = self._test_images[:_EVALUATION_BATCH]
        with trace(model) as record:
            model(self._values(images, np.random.default_rng(_NOISE_SEED)))
        return plot_attention(record)

    def pictures(self, model: nn.Module) -> Mapping[str, NDArray[np.uint8]]:
        """Test images each before its reconstruction, and images of 64 latent vectors."""
        assert isinstance(model, VAE)
        noise = torch.Generator().manual_seed(_NOISE_SEED)
        images = self._test_images[:_SHOWN]
        values = self._values(images, np.random.default_rng(_NOISE_SEED))
        decoded = to_bytes(model.decode(model.encode(values)[0]))
        samples = to_bytes(model.sample(2 * _SHOWN, generator=noise))
        return {
            "reconstructions": grid(side_by_side(images, decoded), _COLUMNS),
            "samples": grid(samples, _COLUMNS),
        }

    @property
    def rows(self) -> Sequence[Row]:
        """The bound in two units, and its two terms."""
        return [
            Row("nats", "negative ELBO, nats per image", "", "lower", 0.0),
            Row("bits_per_dim", "negative ELBO, bits per value", "", "lower", 0.0),
            Row("test_reconstruction", "reconstruction, nats", "", "lower", 0.0, drawn=False),
            Row("test_kl", "KL of the latent vectors, nats", "", "lower", 0.0, drawn=False),
        ]

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables."""
        kind = (
            "a digit's pixels are probabilities, and the bound is that of black and white images "
            "drawn with them, padding included"
            if self._is_binary
            else "images of bytes with uniform noise, so that the bound holds for the bytes"
        )
        return [
            f"Negative ELBO on the test images, one draw of the latent vector each: {kind}. "
            f"An image has {self._dimensions} values.",
            "arXiv:2010.08012 names NFM in encoders of VAEs, without settings or numbers.",
            "Pictures in the folder of a run: samples-STEPS.png, always of the same latent "
            "vectors, and reconstructions-STEPS.png, each test image left of its reconstruction "
            "from the mean of the latent vector.",
        ]
