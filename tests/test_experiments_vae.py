"""The VAE: its bound in both units, its pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from command_line import Rims, assert_one_line, tree
from experiments.configs.images import VAEConfig
from experiments.fit import fit
from experiments.tasks.vae import VAEExperiment
from image_cases import (
    assert_attention_is_drawn,
    assert_goes_on,
    pictures_in,
    write_cifar10,
    write_digits,
)
from nfm.models.vae import VAE, VAEOutput

SMALL: dict[str, Any] = {
    "batch_size": 20,
    "width": 2,
    "latent_size": 3,
    "epochs": 2,
    "key_size": 2,
    "value_size": 2,
    "num_heads": 1,
    "rescale": "nearest",
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar10(tmp_path_factory.mktemp("cifar"))


def vae(folder: Path, /, **settings: Any) -> VAEExperiment:
    return VAEExperiment(VAEConfig(data_dir=str(folder), **{**SMALL, **settings}))


class Fixed(nn.Module):
    """Decodes everything to one value, with a posterior that is the prior, shifted by one."""

    def __init__(self, value: float, log_scale: float | None) -> None:
        super().__init__()
        self.value, self.log_scale = value, log_scale

    def forward(self, images: Tensor) -> VAEOutput:
        mean = torch.ones(len(images), 3)
        scale = None if self.log_scale is None else torch.tensor(self.log_scale)
        decoded = torch.full_like(images, self.value)
        return VAEOutput(decoded, mean, torch.zeros_like(mean), scale)


def test_batches_follow_from_seed_and_epoch(cifar: Path) -> None:
    first, again = list(vae(cifar, dataset="cifar10").batches(3)), []
    again = list(vae(cifar, dataset="cifar10").batches(3))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert first[0].shape == (20, 3, 32, 32)
    assert not torch.equal(first[0], next(iter(vae(cifar, dataset="cifar10").batches(4))))


def test_noise_turns_bytes_into_values_that_are_still_theirs(cifar: Path, digits: Path) -> None:
    experiment = vae(cifar, dataset="cifar10")
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    values = experiment._values(images, np.random.default_rng(0))
    assert (values * 256).floor().flatten().tolist() == list(range(256))
    assert float((values * 256 - (values * 256).floor()).std()) > 0.2
    shares = vae(digits)._values(images, np.random.default_rng(0))
    torch.testing.assert_close(shares.flatten() * 255, torch.arange(256.0))


def test_bound_of_digits_is_the_bernoulli_one(digits: Path) -> None:
    experiment = vae(digits)
    found = experiment.evaluate(Fixed(0.0, None))
    assert found["test_reconstruction"] == pytest.approx(1024 * math.log(2), rel=1e-5)
    assert found["test_kl"] == pytest.approx(1.5)
    assert found["nats"] == pytest.approx(1024 * math.log(2) + 1.5, rel=1e-5)
    assert found["bits_per_dim"] == pytest.approx(1 + 1.5 / (1024 * math.log(2)), rel=1e-5)


def test_bound_of_photographs_is_that_of_bytes(cifar: Path) -> None:
    experiment = vae(cifar, dataset="cifar10")
    # A normal distribution so wide that all values are as likely: its height, times 1/256.
    found = experiment.evaluate(Fixed(0.5, math.log(1e3)))
    height = math.log(1e3) + 0.5 * math.log(2 * math.pi)
    expected = (height + math.log(256)) / math.log(2)
    assert found["bits_per_dim"] == pytest.approx(expected + 1.5 / (3072 * math.log(2)), rel=1e-5)
    batch = next(iter(experiment.batches(0)))
    terms = experiment.loss(Fixed(0.5, 0.0), batch, torch.Generator())
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + terms["kl"])


def test_bound_does_not_depend_on_the_seed_of_the_run(cifar: Path) -> None:
    model = Fixed(0.4, -1.0)
    found = [vae(cifar, dataset="cifar10", seed=seed).evaluate(model) for seed in (0, 1)]
    assert found[0] == found[1]


@pytest.mark.parametrize("model", ["cnn", "nfm"])
def test_run_that_is_broken_off_goes_on_exactly(digits: Path, tmp_path: Path, model: str) -> None:
    results = assert_goes_on(lambda: vae(digits, model=model), tmp_path, step=4)
    assert results.steps == 6
    assert set(results.metrics) == {row.key for row in vae(digits).rows}
    names = [
        f"{what}-00000{n}.png" for what in ("reconstructions", "samples") for n in ("03", "06")
    ]
    assert list(pictures_in(tmp_path / "whole")) == names


def test_pictures_of_photographs_are_in_colour(cifar: Path, tmp_path: Path) -> None:
    results = fit(vae(cifar, dataset="cifar10", epochs=1), tmp_path)
    assert results.metrics["bits_per_dim"] > 0
    (name,) = tmp_path.glob("reconstructions-*.png")
    with Image.open(name) as picture:
        assert (picture.mode, picture.size) == ("RGB", (2 * (8 * 34 - 2), 2 * 32))


def test_reconstructions_stand_right_of_their_images(digits: Path) -> None:
    experiment = vae(digits)
    model = experiment.make_model().eval()
    assert isinstance(model, VAE)
    picture = experiment.pictures(model)["reconstructions"]
    original, decoded = picture[:64:2, :64:2], picture[:64:2, 68:132:2]
    np.testing.assert_array_equal(original, experiment._test_images[0, :, :, 0])
    values = torch.from_numpy(original.copy())[None, None].float() / 255
    expected = (model.decode(model.encode(values)[0]) * 255).round()
    np.testing.assert_array_equal(decoded, expected[0, 0].detach().numpy())


@pytest.mark.long
def test_learns_the_digits(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "data", 200)
    settings = {"epochs": 12, "width": 4, "learning_rate": 1e-2}
    results = fit(vae(folder, **settings), tmp_path / "run")
    assert results.metrics["nats"] < 250  # 80 of 1024 pixels are white: grey noise costs 280


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--data-dir", "nowhere"), "must hold t10k"),
        (("--dataset", "cifar100", "--data-dir", "data"), "data must be or hold"),
        (("--dataset", "cifar10", "--data-dir", "data", "--batch-size", "21"), "at most 20"),
        (("--dataset", "cifar10", "--data-dir", "data", "--stages", "5"), "--stages"),
    ],
)
def test_command_refuses_before_any_work(
    rims: Rims, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    write_cifar10(tmp_path / "here" / "data")
    before = tree(tmp_path)
    result = rims("experiment", "vae", "--run-root", "root", *options)
    assert told in assert_one_line(result)
    assert tree(tmp_path) == before


def test_attention_is_drawn(digits: Path) -> None:
    assert_attention_is_drawn(vae(digits, model="nfm"))


def test_other_images_are_other_data(digits: Path, tmp_path: Path) -> None:
    found = vae(digits).data_identity
    assert found.startswith("48 and 12 samples, ")
    assert vae(write_digits(tmp_path / "same")).data_identity == found
    assert vae(write_digits(tmp_path / "less", 50)).data_identity != found
