"""The networks of arXiv:2010.08012, each with and without NFM from the same code."""

from nfm.models.atari import ATARI_NFM, AtariEncoder, AtariIQN
from nfm.models.gan import GAN_NFM, Discriminator, Features, Generator, Verdict
from nfm.models.gan_losses import hinge_discriminator_loss, hinge_generator_loss, infomax_loss
from nfm.models.iqn import IQNHead, IQNOutput, NoisyLinear, quantile_huber_loss
from nfm.models.parameters import ParameterCount, parameter_table
from nfm.models.preact_resnet import (
    CIFAR_NFM,
    PreActBlock,
    PreActBottleneck,
    PreActResNet,
    preact_resnet18,
    preact_resnet34,
    preact_resnet50,
)
from nfm.models.relational import CNN_MLP, SORT_OF_CLEVR_NFM, RelationNetwork
from nfm.models.stacked_cnn import STACKED_MNIST_NFM, StackedCNN
from nfm.models.vae import ELBO, VAE, VAE_NFM, Likelihood, VAEOutput, elbo, reparameterise

__all__ = [
    "ATARI_NFM",
    "CIFAR_NFM",
    "CNN_MLP",
    "ELBO",
    "GAN_NFM",
    "SORT_OF_CLEVR_NFM",
    "STACKED_MNIST_NFM",
    "VAE",
    "VAE_NFM",
    "AtariEncoder",
    "AtariIQN",
    "Discriminator",
    "Features",
    "Generator",
    "IQNHead",
    "IQNOutput",
    "Likelihood",
    "NoisyLinear",
    "ParameterCount",
    "PreActBlock",
    "PreActBottleneck",
    "PreActResNet",
    "RelationNetwork",
    "StackedCNN",
    "VAEOutput",
    "Verdict",
    "elbo",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "infomax_loss",
    "parameter_table",
    "preact_resnet18",
    "preact_resnet34",
    "preact_resnet50",
    "quantile_huber_loss",
    "reparameterise",
]
