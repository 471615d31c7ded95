"""The GAN: its steps, what it is judged by, its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from command_line import Rims, assert_one_line, tree
from experiments.configs.images import GANConfig
from experiments.experiment import State
from experiments.fit import fit
from experiments.shared.distances import frechet_distance, patch_distance, principal_axes
from experiments.shared.images import grid
from experiments.tasks.gan import GAN, GANExperiment
from image_cases import (
    assert_attention_is_drawn,
    assert_goes_on,
    pictures_in,
    write_cifar10,
    write_digits,
)
from lab.disk.folder import read_progress
from nfm import NFM
from selection import short

SMALL: dict[str, Any] = {
    "dataset": "mnist",
    "batch_size": 4,
    "width": 4,
    "latent_size": 3,
    "projection_size": 5,
    "discriminator_steps": 2,
    "steps_per_epoch": 2,
    "epochs": 2,
    "evaluation_images": 10,
    "key_size": 2,
    "value_size": 2,
    "num_heads": 1,
    "rescale": "nearest",
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def gan(folder: Path, /, **settings: Any) -> GANExperiment:
    return GANExperiment(GANConfig(data_dir=str(folder), **{**SMALL, **settings}))


def state_of(experiment: GANExperiment) -> tuple[State, GAN]:
    torch.manual_seed(0)
    model = experiment.make_model()
    assert isinstance(model, GAN)
    optimizers = experiment.make_optimizers(model)
    return State(model, optimizers, torch.Generator()), model


# Steps ------------------------------------------------------------------------------------------


def test_batches_follow_from_seed_and_epoch_and_show_each_image_before_any_again(
    digits: Path,
) -> None:
    first, again = list(gan(digits).batches(3)), list(gan(digits).batches(3))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len(first) == 2
    assert first[0].shape == (2, 4, 1, 32, 32)
    assert (float(first[0].min()), float(first[0].max())) == (-1, 1)
    assert not torch.equal(first[0], next(iter(gan(digits).batches(4))))
    whole = torch.cat(list(gan(digits, steps_per_epoch=6).batches(0)))  # (12, 4, 1, 32, 32)
    places = (whole[:, :, 0] > 0).float().argmax(3).amax(2).flatten()
    counts = torch.bincount((places - 4) // 2)
    assert counts.sum() == 48  # each of the training digits once: their classes as they are
    assert counts.max() <= 6


def test_step_trains_each_network_as_often_as_it_should(digits: Path) -> None:
    experiment = gan(digits, model="infomax")
    state, model = state_of(experiment)
    before = [p.detach().clone() for p in model.generator.parameters()]
    counted = dict.fromkeys(state.optimizers, 0)
    for name, optimizer in state.optimizers.items():

        def count(*_: object, name: str = name) -> None:
            counted[name] += 1

        optimizer.register_step_post_hook(count)
    scalars = experiment.train_step(state, next(iter(experiment.batches(0))))
    assert counted == {"generator": 1, "discriminator": 2}
    assert set(scalars) == {"discriminator_loss", "infomax_real", "loss", "infomax_generated"}
    after = list(model.generator.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(p.requires_grad for p in model.parameters())


def test_generator_step_leaves_the_discriminator_alone(digits: Path) -> None:
    experiment = gan(digits)
    state, model = state_of(experiment)
    batch = next(iter(experiment.batches(0)))
    experiment.train_step(state, batch)
    kept = [p.detach().clone() for p in model.discriminator.parameters()]
    for p in model.discriminator.parameters():
        p.grad = None
    model.discriminator.requires_grad_(False)
    state.descend(experiment.loss(model, batch[-1], state.generator)["loss"], "generator")
    assert all(p.grad is None for p in model.discriminator.parameters())
    after = model.discriminator.parameters()
    assert all(torch.equal(old, new) for old, new in zip(kept, after, strict=True))


def test_models_differ_in_what_they_are_named_for(digits: Path) -> None:
    found = {name: state_of(gan(digits, model=name))[1] for name in ("sngan", "infomax", "nfm")}
    has_nfm = {
        name: [any(isinstance(m, NFM) for m in part.modules()) for part in model.children()]
        for name, model in found.items()
    }
    assert has_nfm == {"sngan": [False] * 2, "infomax": [False] * 2, "nfm": [True, False]}
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in found.items()}
    assert sizes["sngan"] < sizes["infomax"] < sizes["nfm"]


def test_infomax_is_added_with_its_weight(digits: Path) -> None:
    found = []
    for weight in (0.0, 1.0):
        experiment = gan(digits, model="infomax", infomax_weight=weight)
        _, model = state_of(experiment)
        model.eval()
        torch.manual_seed(1)
        found.append(experiment.loss(model, torch.zeros(4, 1, 32, 32), torch.Generator()))
    plain, weighted = found
    assert plain["infomax_generated"].item() > 0
    expected = plain["loss"] + weighted["infomax_generated"]
    torch.testing.assert_close(weighted["loss"], expected)


def test_adam_has_the_settings_of_mimicry(digits: Path) -> None:
    state, _ = state_of(gan(digits))
    for optimizer in state.optimizers.values():
        (group,) = optimizer.param_groups
        assert (group["lr"], group["betas"]) == (2e-4, (0.0, 0.9))
    config = GANConfig()
    assert (config.discriminator_steps, config.infomax_weight, config.schedule) == (
        5,
        0.2,
        "linear",
    )
    assert (config.epochs * config.steps_per_epoch, config.batch_size) == (100_000, 64)


# Runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", short(["sngan", "nfm"], 0))
def test_run_that_is_broken_off_goes_on_exactly(digits: Path, tmp_path: Path, model: str) -> None:
    results = assert_goes_on(lambda: gan(digits, model=model), tmp_path, step=3)
    assert results.steps == 4
    assert set(results.metrics) == {row.key for row in gan(digits).rows}
    assert list(pictures_in(tmp_path / "whole")) == ["samples-0000002.png", "samples-0000004.png"]
    curves = read_progress(tmp_path / "whole")
    assert {curve.column for curve in gan(digits).curves} <= curves.keys()
    assert curves["learning_rate"][-1] == pytest.approx(0.25 * 2e-4)


def test_colour_pictures_show_64_samples_of_latent_vectors_that_stay(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "data")
    settings = {"dataset": "cifar10", "epochs": 1, "steps_per_epoch": 1}
    for seed in (0, 1):
        fit(gan(folder, **settings, seed=seed), tmp_path / f"run{seed}")
    with Image.open(tmp_path / "run0" / "samples-0000001.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (2 * (8 * 34 - 2),) * 2)
    experiment = gan(folder, **settings)
    _, model = state_of(experiment)
    model.eval()
    first = experiment.pictures(model)["samples"]
    torch.rand(3)
    np.testing.assert_array_equal(first, experiment.pictures(model)["samples"])


def test_grid_shows_images_row_by_row() -> None:
    images = np.arange(1, 4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    picture = grid(images, 2, gap=1, scale=1)
    assert picture.tolist() == [
        [1, 1, 128, 2, 2],
        [1, 1, 128, 2, 2],
        [128] * 5,
        [3, 3, 128, 128, 128],
        [3, 3, 128, 128, 128],
    ]


# Distances --------------------------------------------------------------------------------------


def images_of(seed: int, total: int = 200, **settings: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(total, 3, 32, 32, generator=generator, **settings)


def test_frechet_distance_is_that_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(500, 3, generator=generator).double()
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)
    shift = torch.tensor([1.0, 2.0, 0.0]).double()
    assert frechet_distance(points, points + shift) == pytest.approx(5)
    wide = frechet_distance(points, 3 * (points - points.mean(0)) + points.mean(0))
    assert wide == pytest.approx(4 * float(points.var(0).sum()))
    mixing = torch.randn(3, 3, generator=generator).double()
    other = points @ mixing
    one, two = np.cov(points.numpy().T), np.cov(other.numpy().T)
    roots = np.linalg.eigvals(one @ two).real
    means = float((points.mean(0) - other.mean(0)).square().sum())
    expected = means + np.trace(one) + np.trace(two) - 2 * np.sqrt(roots).sum()
    assert frechet_distance(points, other) == pytest.approx(expected)


def test_principal_axes_are_those_of_the_covariance() -> None:
    images = images_of(0, 40)[:, :, :2, :2] * torch.arange(1.0, 13).reshape(1, 3, 2, 2)
    axes = principal_axes(images, 5)
    values, vectors = np.linalg.eigh(np.cov(images.flatten(1).double().numpy().T))
    overlap = np.abs(vectors[:, ::-1][:, :5].T @ axes.directions.numpy())
    np.testing.assert_allclose(overlap, np.eye(5), atol=1e-6)
    features = axes.features(images)
    np.testing.assert_allclose(features.var(0), values[::-1][:5], rtol=1e-6)
    assert principal_axes(images[:3], 5).directions.shape == (12, 2)  # three images span a plane


def test_patch_distance_sees_what_pixels_alone_do_not() -> None:
    real, again = images_of(0), images_of(1)
    smooth = torch.nn.functional.avg_pool2d(images_of(2), 3, 1, 1)
    smooth = smooth / smooth.std() * real.std()
    floor = patch_distance(real, again)
    assert 0 < floor < 50
    assert patch_distance(real, smooth) > 5 * floor
    assert patch_distance(real, again + 0.5) > 5 * floor  # it is not the same brightness
    with pytest.raises(ValueError, match="patch_distance: other must have the shape"):
        patch_distance(real, again[1:])


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--data-dir", "nowhere"), "nowhere must be or hold"),
        (("--data-dir", "data", "--batch-size", "21"), "batch_size must be at most 20"),
        (("--data-dir", "data", "--optimizer", "sgd"), "--optimizer"),
        (("--data-dir", "data", "--dataset", "tiny-imagenet", "--width", "24"), "multiple of 16"),
    ],
)
def test_command_refuses_before_any_work(
    rims: Rims, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    write_cifar10(tmp_path / "here" / "data")
    before = tree(tmp_path)
    result = rims("experiment", "gan", "--width", "4", *options, "--run-root", "root")
    assert told in assert_one_line(result)
    assert tree(tmp_path) == before


def test_batches_that_cannot_be_filled_do_not_run_for_ever(digits: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at most 48"):
        next(iter(gan(digits, batch_size=49).batches(0)))


@pytest.mark.long
def test_attention_is_drawn(digits: Path) -> None:
    assert_attention_is_drawn(gan(digits, model="nfm"))


def test_other_images_are_other_data(digits: Path, tmp_path: Path) -> None:
    found = gan(digits).data_identity
    assert found.startswith("48 and 12 samples, ")
    assert gan(write_digits(tmp_path / "same")).data_identity == found
    assert gan(write_digits(tmp_path / "less", 50)).data_identity != found
