"""Every network of nfm.models with NFM learns: a few steps on one batch lower its loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfm.models import (
    ATARI_NFM,
    CIFAR_NFM,
    CNN_MLP,
    GAN_NFM,
    SORT_OF_CLEVR_NFM,
    STACKED_MNIST_NFM,
    VAE,
    VAE_NFM,
    AtariIQN,
    Discriminator,
    Generator,
    PreActBlock,
    PreActResNet,
    RelationNetwork,
    StackedCNN,
    elbo,
    hinge_discriminator_loss,
    hinge_generator_loss,
    infomax_loss,
    quantile_huber_loss,
)
from nfm.module import NFM

Learner = tuple[nn.Module, Callable[[], Tensor]]


def classifier() -> Learner:
    model = PreActResNet(PreActBlock, (1, 1, 1, 1), 7, planes=4, nfm=CIFAR_NFM)
    images, labels = torch.rand(8, 3, 16, 16), torch.randint(7, (8,))
    return model, lambda: F.cross_entropy(model(images), labels)


def digits() -> Learner:
    model = StackedCNN(width=4, nfm=STACKED_MNIST_NFM)
    images, labels = torch.rand(2, 1, 64, 64), torch.randint(2, (2, 10)).float()
    return model, lambda: F.binary_cross_entropy_with_logits(model(images), labels)


def _answers(model: nn.Module) -> Learner:
    images, questions = torch.rand(2, 3, 75, 75), torch.randint(2, (2, 3, 11)).float()
    labels = torch.randint(10, (6,))
    return model, lambda: F.cross_entropy(model(images, questions).flatten(0, 1), labels)


def mlp() -> Learner:
    return _answers(CNN_MLP(channels=6, hidden=32, nfm=SORT_OF_CLEVR_NFM))


def relations() -> Learner:
    return _answers(RelationNetwork(channels=6, hidden=16))


def autoencoder() -> Learner:
    model = VAE(image_size=16, width=4, stages=2, latent_size=5, nfm=VAE_NFM)
    images = torch.rand(8, 1, 16, 16).round()
    return model, lambda: elbo(images, model(images)).loss


def agent() -> Learner:
    model = AtariIQN(3, width=2, hidden=16, nfm=ATARI_NFM)
    frames, targets = torch.rand(4, 4, 84, 84), torch.randn(4, 5)

    def loss() -> Tensor:
        quantiles, taus = model(frames, 8)
        return quantile_huber_loss(quantiles[:, :, 0], taus, targets).mean()

    return model, loss


def discriminator() -> Learner:
    model, generator = Discriminator(width=8, projection_size=16), Generator(width=4)
    real, fake = torch.rand(4, 3, 32, 32), generator.sample(4).detach()

    def loss() -> Tensor:
        of_real, of_fake = model(real), model(fake)
        information = infomax_loss(*model.project(of_real.features))
        return hinge_discriminator_loss(of_real.score, of_fake.score) + 0.2 * information

    return model, loss


def generator() -> Learner:
    model, judge = Generator(width=4, nfm=GAN_NFM), Discriminator(width=8, projection_size=16)
    judge.eval().requires_grad_(False)
    latent = torch.randn(4, 128)

    def loss() -> Tensor:
        verdict = judge(model(latent))
        return hinge_generator_loss(verdict.score) + 0.2 * infomax_loss(
            *judge.project(verdict.features)
        )

    return model, loss


LEARNERS = [
    classifier,
    digits,
    mlp,
    relations,
    autoencoder,
    agent,
    discriminator,
    generator,
]


@pytest.mark.parametrize("build", LEARNERS, ids=lambda build: build.__name__)
def test_loss_goes_down(build: Callable[[], Learner]) -> None:
    torch.manual_seed(0)
    model, loss_of = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3]), losses
    gates = [
        layer.gamma.item() for layer in model.modules() if isinstance(layer, NFM) and layer.reads
    ]
    assert all(gates), "a gate that has not moved"
