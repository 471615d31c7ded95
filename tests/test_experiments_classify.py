"""Classification: what it trains on, accuracy as it is, behind boxes and with random attention."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from command_line import Rims, assert_one_line, tree
from experiments.configs.images import ClassifyConfig
from experiments.fit import fit, judging, rate_factor
from experiments.shared.images import levels_of, load_images, to_tensor
from experiments.tasks.classify import ClassifyExperiment
from image_cases import (
    assert_attention_is_drawn,
    assert_goes_on,
    cifar_values,
    write_cifar10,
    write_digits,
)

SMALL: dict[str, Any] = {
    "planes": 2,
    "batch_size": 8,
    "epochs": 2,
    "key_size": 2,
    "value_size": 2,
    "num_heads": 1,
    "rescale": "nearest",
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar10(tmp_path_factory.mktemp("cifar"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def classify(folder: Path, /, **settings: Any) -> ClassifyExperiment:
    return ClassifyExperiment(ClassifyConfig(data_dir=str(folder), **{**SMALL, **settings}))


class Reader(nn.Module):
    """Finds the class of a small CIFAR image by its brightest rows of red."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images[:, 0].mean(2)  # (B, 32)
        return torch.stack([rows[:, 2 * n : 2 * n + 3].mean(1) for n in range(10)], dim=1)


# Data -------------------------------------------------------------------------------------------


def test_batches_follow_from_seed_and_epoch(cifar: Path) -> None:
    first, again = list(classify(cifar).batches(3)), list(classify(cifar).batches(3))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.labels.tolist(), one.share) == (other.labels.tolist(), other.share)
    assert [len(batch.labels) for batch in first] == [8, 8, 4]
    assert classify(cifar).steps_per_epoch == 3
    assert not torch.equal(first[0].images, next(iter(classify(cifar).batches(4))).images)
    assert not torch.equal(first[0].images, next(iter(classify(cifar, seed=1).batches(3))).images)


def test_plain_images_are_normalised_by_the_training_set(digits: Path) -> None:
    experiment = classify(digits, dataset="mnist", mixup=0, crop_padding=0)
    images = torch.cat([batch.images for batch in experiment.batches(0)])
    assert images.shape == (48, 1, 32, 32)
    assert float(images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_each_image_keeps_its_label_and_stays_the_right_way_up(digits: Path) -> None:
    experiment = classify(digits, dataset="mnist", mixup=0, crop_padding=0)
    for batch in experiment.batches(0):
        assert torch.equal(batch.labels, batch.other_labels) or batch.share == 1
        left = (batch.images[:, 0] > 0).float().argmax(2).amax(1)  # of the bar; padded by 2
        assert torch.equal(left, 4 + 2 * batch.labels)


def test_photographs_are_mirrored_half_the_time(cifar: Path) -> None:
    experiment = classify(cifar, mixup=0, crop_padding=0, batch_size=20)
    plain = load_images(experiment.config, "train").images
    levels = levels_of(plain)
    device = torch.device("cpu")
    mean, deviation = (torch.from_numpy(level)[:, None, None] for level in levels)
    known = (to_tensor(plain, device) - mean) / deviation  # (20, 3, 32, 32)
    (batch,) = experiment.batches(0)
    straight = sum(bool((known - image).abs().amax((1, 2, 3)).min() < 1e-5) for image in batch[0])
    turned = sum(
        bool((known - image.flip(-1)).abs().amax((1, 2, 3)).min() < 1e-5) for image in batch[0]
    )
    assert straight + turned == 20
    assert 4 <= turned <= 16


def test_mixed_images_and_losses_have_the_same_shares(digits: Path) -> None:
    plain = next(
        iter(classify(digits, dataset="mnist", mixup=0, crop_padding=0, batch_size=48).batches(0))
    )
    mixed = next(
        iter(classify(digits, dataset="mnist", mixup=1, crop_padding=0, batch_size=48).batches(0))
    )
    assert 0 < mixed.share < 1
    assert plain.share == 1
    of_class = {int(n): image for n, image in zip(plain.labels, plain.images, strict=True)}
    for image, label, other in zip(mixed.images, mixed.labels, mixed.other_labels, strict=True):
        expected = mixed.share * of_class[int(label)] + (1 - mixed.share) * of_class[int(other)]
        torch.testing.assert_close(image, expected)

    class Sure(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot(mixed.labels, 10) * math.log(3.0)

    found = classify(digits, dataset="mnist").loss(Sure(), mixed, torch.Generator())
    right, wrong = math.log(12 / 3), math.log(12)
    same = (mixed.labels == mixed.other_labels).float().mean()
    share = mixed.share + (1 - mixed.share) * same
    assert float(found["loss"]) == pytest.approx(
        float(share * right + (1 - share) * wrong), rel=1e-5
    )


def test_levels_are_those_of_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1003, 2, 3, 3), np.uint8)
    found = levels_of(images)
    np.testing.assert_allclose(found.mean, images.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.deviation, images.std((0, 1, 2)), rtol=1e-5)
    assert levels_of(np.full((2, 2, 2, 1), 7, np.uint8)).deviation.tolist() == [1.0]


# Runs -------------------------------------------------------------------------------------------


def test_run_that_is_broken_off_goes_on_exactly(cifar: Path, tmp_path: Path) -> None:
    results = assert_goes_on(lambda: classify(cifar, model="nfm"), tmp_path, step=3)
    assert results.steps == 6
    assert set(results.metrics) == {row.key for row in classify(cifar).rows}


@pytest.mark.parametrize(("depth", "parameters"), [("18", 11_172_170), ("50", 23_513_162)])
def test_depth_and_planes_are_those_of_the_network(depth: str, parameters: int) -> None:
    with torch.device("meta"):
        model = classify(Path(), depth=depth, planes=64).make_model()
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.long
def test_learns_which_row_is_red(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "data", 40)
    settings = {"planes": 4, "epochs": 6, "batch_size": 20, "mixup": 0, "crop_padding": 0}
    results = fit(classify(folder, **settings), tmp_path / "run")
    assert results.metrics["accuracy"] > 0.5
    assert "accuracy_random_attention" not in results.metrics


def test_accuracies_of_a_network_that_knows(cifar: Path) -> None:
    assert classify(cifar).test(Reader()) == {"accuracy": 1.0, "accuracy_occluded": 1.0}
    covered = classify(cifar, occlusion_size=64).test(Reader())
    assert covered["accuracy"] == 1.0
    assert covered["accuracy_occluded"] < 1.0


def test_boxes_are_the_same_for_every_seed_and_hide_what_the_mean_would(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path, 10)

    class Keep(Reader):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, images: Tensor) -> Tensor:
            self.seen.append(images)
            return super().forward(images)

    first, second = Keep(), Keep()
    classify(folder, seed=0).test(first)
    classify(folder, seed=5).test(second)
    plain, boxed = first.seen
    assert torch.equal(boxed, second.seen[1])
    hidden = (boxed == 0).all(1).flatten(1).sum(1)
    assert hidden.min() >= 8 * 8
    assert hidden.max() <= 16 * 16
    assert len(set(hidden.tolist())) > 1
    assert torch.equal(boxed[boxed != 0], plain[boxed != 0])


def test_random_attention_is_drawn_anew_from_the_seed(cifar: Path) -> None:
    torch.manual_seed(0)
    experiment = classify(cifar, model="nfm")
    model = experiment.make_model()
    found = []
    for _ in range(2):
        with judging(model, 0, torch.device("cpu")):
            found.append(experiment.test(model))
    assert found[0] == found[1]
    assert not any(getattr(module, "random", False) for module in model.modules())


def test_attention_is_drawn(cifar: Path) -> None:
    assert_attention_is_drawn(classify(cifar, model="nfm"))


def test_other_images_or_classes_are_other_data(cifar: Path, tmp_path: Path) -> None:
    found = classify(cifar).data_identity
    assert found.startswith("20 and 4 samples, ")
    assert classify(write_cifar10(tmp_path / "same")).data_identity == found
    assert classify(write_cifar10(tmp_path / "more", 5)).data_identity != found


# Tables, refusals -------------------------------------------------------------------------------


def test_published_numbers_are_those_of_the_settings() -> None:
    table = classify(Path()).published
    assert table["cnn"]["accuracy"].mean == 96.27
    assert table["nfm"]["accuracy_occluded"].mean == 84.11
    assert table["nfm"]["accuracy_random_attention"].mean == 88.5
    assert "accuracy_random_attention" not in table["cnn"]
    assert "accuracy_occluded" not in classify(Path(), occlusion_size=8).published["nfm"]
    tiny = classify(Path(), dataset="tiny-imagenet").published
    assert (tiny["cnn"]["accuracy"].mean, tiny["nfm"]["accuracy"].mean) == (57.12, 58.32)
    assert set(tiny["nfm"]) == {"accuracy"}
    assert classify(Path(), dataset="mnist").published == {}
    assert classify(Path(), dataset="cifar100", depth="50").published == {}


def test_step_size_falls_at_epochs_200_400_and_500_of_600() -> None:
    config = ClassifyConfig()
    assert (config.epochs, config.learning_rate) == (600, 0.1)
    steps = 391  # of an epoch
    epochs = (0, 199, 200, 399, 400, 499, 500, 599)
    found = [rate_factor(config.schedule, e * steps / (600 * steps)) for e in epochs]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--data-dir", "nowhere"), "nowhere must be or hold"),
        (("--dataset", "mnist", "--data-dir", "nowhere"), "must hold t10k"),
        (("--dataset", "tiny-imagenet", "--data-dir", "nowhere"), "nowhere must be or hold"),
        (("--data-dir", "data", "--batch-size", "21"), "batch_size must be at most 20"),
        (("--data-dir", "data", "--download"), "can fetch mnist alone"),
        (("--data-dir", "data", "--depth", "19"), "--depth"),
    ],
)
def test_command_refuses_before_any_work(
    rims: Rims, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    write_cifar10(tmp_path / "here" / "data")
    before = tree(tmp_path)
    result = rims("experiment", "classify", "--run-root", "root", *options)
    assert told in assert_one_line(result)
    assert tree(tmp_path) == before


def test_missing_training_files_are_told(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"missing: data_batch_3"):
        classify(tmp_path).check()


def test_digits_are_found_in_a_folder_of_data_sets(tmp_path: Path) -> None:
    write_digits(tmp_path / "mnist")
    config = ClassifyConfig(dataset="mnist", data_dir=str(tmp_path))
    images, labels = load_images(config, "test")
    assert (images.shape, len(labels)) == ((12, 32, 32, 1), 12)
    assert images[:, :6].max() == 0


def test_values_of_cifar_are_red_first() -> None:
    assert cifar_values(0, [3]).reshape(3, 32, 32)[0, 6:9].min() == 255
