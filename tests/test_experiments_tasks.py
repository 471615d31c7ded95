"""The tasks: what they train on, what they judge, what they compare with."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from command_line import Rims, assert_one_line, tree
from experiment_cases import assert_same
from experiments.configs.base import NFM_MODEL, NFMConfig
from experiments.configs.generated import SortOfClevrConfig, StackedMNISTConfig
from experiments.fit import fit, judging
from experiments.registry import TASKS
from experiments.results import RESULTS_NAME
from experiments.shared.networks import nfm_options
from experiments.tasks.sort_of_clevr import SortOfClevrExperiment
from experiments.tasks.stacked_mnist import StackedMNISTExperiment
from nfm import NFM
from selection import short

CLEVR: dict[str, Any] = {
    "train_images": 9,
    "validation_images": 5,
    "test_images": 120,
    "batch_size": 4,
    "channels": 2,
    "hidden_size": 4,
    "epochs": 1,
    "rescale": "nearest",
}


def clevr(**settings: Any) -> SortOfClevrExperiment:
    return SortOfClevrExperiment(SortOfClevrConfig(**{**CLEVR, **settings}))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MNIST: 60 digits, 10 of each of six classes, a class being a brightness."""
    folder = tmp_path_factory.mktemp("mnist")
    labels = np.arange(60, dtype=np.uint8) % 6
    images = np.broadcast_to(40 * (labels[:, None, None] + 1), (60, 28, 28)).astype(np.uint8)
    head = struct.pack(">4i", 0x803, 60, 28, 28)
    (folder / "t10k-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = struct.pack(">2i", 0x801, 60)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return folder


def stacked(folder: Path, /, **settings: Any) -> StackedMNISTExperiment:
    small: dict[str, Any] = {
        "data_dir": str(folder),
        "train_images": 10,
        "validation_images": 6,
        "test_images": 7,
        "batch_size": 4,
        "width": 2,
        "epochs": 1,
    }
    return StackedMNISTExperiment(StackedMNISTConfig(**{**small, **settings}))


class Oracle(nn.Module):
    """Gives the logits it was made with, a batch after the other."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.given = logits, 0

    def forward(self, images: Tensor, *_: Tensor) -> Tensor:
        part = self.logits[self.given : self.given + len(images)]
        self.given = (self.given + len(images)) % len(self.logits)
        return part


# Sort-of-CLEVR ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", short(["cnn", "nfm", "rn"], 0, 2))
def test_clevr_trains_and_judges_every_row(tmp_path: Path, model: str) -> None:
    experiment = clevr(model=model, held_out=2, questions=3)
    results = fit(experiment, tmp_path)
    assert results.steps == 2  # the ninth image would be a batch of one
    assert set(results.metrics) == {row.key for row in experiment.rows}
    assert len(results.metrics) == 2 + 2 + 2 + 6


def test_clevr_batches_follow_from_seed_and_epoch() -> None:
    first, again = list(clevr().batches(3)), list(clevr().batches(3))
    assert_same([tuple(b) for b in first], [tuple(b) for b in again])
    other = next(iter(clevr().batches(4)))
    assert not torch.equal(first[0].images, other.images)
    assert first[0].images.shape == (4, 3, 75, 75)
    assert (first[0].images.min() >= 0) & (first[0].images.max() == 1)
    assert first[0].questions.shape == (4, 20, 11)
    drawn = next(iter(clevr(questions=6).batches(3)))
    assert (drawn.questions.shape, drawn.answers.shape) == ((4, 6, 11), (4, 6))


def test_clevr_image_has_red_first_and_rows_from_top_to_bottom() -> None:
    experiment = clevr()
    images = torch.cat([batch.images for batch in experiment.batches(0)])
    index = experiment.rng(0).permutation(9)[:8]
    expected = experiment.train_data.images[index].transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-6)


def test_clevr_accuracies_are_those_of_the_questions_they_name() -> None:
    experiment = clevr(held_out=1)
    data = experiment.test_data
    right = np.isin(data.kinds, (0, 5)) & ~data.touches_held_out
    logits = torch.zeros(120, 20, 10)
    logits.scatter_(2, torch.from_numpy(data.answers.astype(np.int64))[..., None], 1.0)
    logits[torch.from_numpy(~right)] *= -1
    found = experiment.test(Oracle(logits))
    seen = ~data.touches_held_out
    assert found["accuracy_kind_1"] == found["accuracy_kind_3"] == 0
    assert found["accuracy_kind_0"] == pytest.approx(seen[data.kinds == 0].mean())
    assert found["accuracy_relational"] == pytest.approx(right[:, 10:].mean())
    assert found["accuracy_non_relational"] == pytest.approx(right[:, :10].mean())
    assert found["accuracy_relational_held_out"] == found["accuracy_non_relational_held_out"] == 0
    assert 0 < found["accuracy_relational_seen"] < 1


@pytest.mark.parametrize(
    ("held_out", "model", "numbers"),
    [(0, "nfm", (74.95, 79.37)), (1, "cnn", (57.67, 57.0)), (3, "rn", (40.67, 46.0))],
)
def test_clevr_published(held_out: int, model: str, numbers: tuple[float, float]) -> None:
    table = clevr(held_out=held_out).published[model]
    assert tuple(number.mean for number in table.values()) == numbers
    assert f"Table {7 if held_out else 6} " in clevr(held_out=held_out).notes[-1]


def test_clevr_has_rows_for_what_is_held_out_only_if_something_is() -> None:
    assert len(clevr().rows) == 8
    assert clevr(held_out=5).published == {}


# Stacked MNIST ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", short(["cnn", "nfm"], 0))
def test_stacked_trains_and_judges_every_row(tmp_path: Path, digits: Path, model: str) -> None:
    experiment = stacked(digits, model=model, rescale="nearest")
    experiment.check()
    results = fit(experiment, tmp_path)
    assert results.steps == 2
    assert set(results.metrics) == {row.key for row in experiment.rows}
    assert [row.label for row in experiment.rows][:3] == [
        "1 digit (trained)", "2 digits", "3 digits (trained)",
    ]  # fmt: skip


def test_stacked_batches_follow_from_seed_and_epoch(digits: Path) -> None:
    first, again = list(stacked(digits).batches(1)), list(stacked(digits).batches(1))
    assert_same([tuple(b) for b in first], [tuple(b) for b in again])
    other = next(iter(stacked(digits).batches(2)))
    assert not torch.equal(first[0].images, other.images)
    seed = next(iter(stacked(digits, seed=1).batches(1)))
    assert not torch.equal(first[0].images, seed.images)
    assert first[0].images.shape == (4, 1, 64, 64)
    assert first[0].targets.sum(1).tolist() == [1, 1, 1, 1]
    assert 1 <= first[1].targets.sum(1).max() <= 3


def test_stacked_counts_images_that_are_right_in_every_class(digits: Path) -> None:
    experiment = stacked(digits)
    logits = []
    for count, data in experiment._test_sets:
        own = torch.from_numpy(data.targets.astype(np.float32)) - 0.5
        own[: count - 1, 9] *= -1  # one class wrong in as many images
        logits.append(own)
    found = experiment.test(Oracle(torch.cat(logits)))
    assert found == pytest.approx({f"accuracy_{n}": (7 - n + 1) / 7 for n in range(1, 6)})


def test_stacked_validation_digits_are_not_trained_on(digits: Path) -> None:
    train, validation = stacked(digits)._digits
    assert (len(train.labels), len(validation.labels)) == (43, 5)  # of 48, the other 12 are tests


def test_stacked_published(digits: Path) -> None:
    table = stacked(digits, digits="1,5").published
    assert table["cnn"]["accuracy_5"].mean == 68.87
    assert table["nfm"]["accuracy_2"].mean == 84.01
    assert stacked(digits, digits="1,2").published == {}


def test_notes_say_what_differs_from_what_is_published(digits: Path) -> None:
    assert "250 epochs with 24 channels; here 1 epochs of 9 images, 2 channels" in clevr().notes[-1]
    assert "Table 7" in clevr(held_out=2).notes[-1]
    assert not any("Published" in note for note in clevr(held_out=5).notes)
    assert (
        f"here 1 epochs of 10 images, 2 channels, digits of '{digits}'" in stacked(digits).notes[-1]
    )


def test_missing_digits_are_one_line_before_any_work(rims: Rims, tmp_path: Path) -> None:
    call = ("experiment", "stacked-mnist", "--run-root", "root", "--data-dir", "nowhere")
    assert "nowhere" in assert_one_line(rims(*call))
    assert tree(tmp_path / "here") == {}


def test_digits_to_train_on_are_looked_for_before_any_work(
    rims: Rims, digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    shutil.copytree(digits, folder)
    (folder / "train-images-idx3-ubyte").write_bytes(b"cut")
    call = ("experiment", "stacked-mnist", "--run-root", "root", "--data-dir", str(folder))
    assert "train-labels-idx1-ubyte" in assert_one_line(rims(*call))
    assert tree(tmp_path / "here") == {}


def test_run_does_not_go_on_with_other_digits(digits: Path, tmp_path: Path) -> None:
    experiment = stacked(digits)
    assert experiment.data_identity.startswith("48 and 12 samples, ")
    results = fit(experiment, tmp_path / "run")
    assert results.data == experiment.data_identity
    (tmp_path / "run" / RESULTS_NAME).unlink()
    other = tmp_path / "other"
    shutil.copytree(digits, other)
    labels = (other / "t10k-labels-idx1-ubyte").read_bytes()
    (other / "t10k-labels-idx1-ubyte").write_bytes(labels[:-1] + b"\0")
    with pytest.raises(ValueError, match=r"was made with other data \(48 and 12 samples, "):
        fit(stacked(other), tmp_path / "run")
    assert fit(stacked(shutil.copytree(digits, tmp_path / "same")), tmp_path / "run") == results


@pytest.mark.parametrize("name", TASKS)
def test_attention_can_be_asked_for_where_there_is_nfm(rims: Rims, name: str) -> None:
    has_nfm = NFM_MODEL in TASKS[name].models
    assert has_nfm == issubclass(TASKS[name].config, NFMConfig)
    assert has_nfm == ("--show-attention" in rims("experiment", name, "--help").out)


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (
            "100000",
            "model cnn needs at least 161.0 GB of memory, and 24.0 GB are free; make it smaller.",
        ),
        ("100000000000", "model cnn cannot be built: "),
        ("9999999999999999999", "--hidden-size must be at most 2**40"),
    ],
)
def test_network_too_large_is_one_line_before_any_work(
    rims: Rims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, told: str
) -> None:
    monkeypatch.setattr("lab.running.memory.available_memory", lambda: 24e9)
    call = ("experiment", "sort-of-clevr", "--run-root", "root", "--hidden-size", size)
    assert told in assert_one_line(rims(*call))
    assert tree(tmp_path / "here") == {}


# NFM --------------------------------------------------------------------------------------------


def test_options_of_nfm_reach_the_modules() -> None:
    settings: dict[str, Any] = {
        "passes": 3,
        "first_pass_reads": False,
        "top_k": 0,
        "topk_rule": "threshold",
        "rescale": "nearest",
        "null_slot": False,
        "key_size": 3,
        "value_size": 5,
        "num_heads": 2,
        "out_kernel_size": 1,
        "batch_norm": False,
    }
    model = clevr(model="nfm", **settings).make_model()
    modules = [module for module in model.modules() if isinstance(module, NFM)]
    assert len(modules) == 3 * 4
    reading = [m for m in modules if hasattr(m, "attention") and m.attention is not None]
    text = repr(reading[-1])
    for part in ("top_k=None", "'threshold'", "'nearest'", "null_slot=False", "num_heads=2"):
        assert part in text
    shared = clevr(model="nfm", passes=2, share_parameters=True).make_model()
    assert sum(isinstance(module, NFM) for module in shared.modules()) == 4


def test_first_pass_that_does_not_read() -> None:
    assert nfm_options(NFMConfig(passes=3, first_pass_reads=False))["read"] == (False, True, True)


# The command ------------------------------------------------------------------------------------


@pytest.mark.long
def test_attention_of_a_finished_run_is_drawn(digits: Path, rims: Rims, tmp_path: Path) -> None:
    here = tmp_path / "here"
    config = stacked(digits, model="nfm", rescale="nearest").config
    fit(StackedMNISTExperiment(config), here / "root" / "nfm-seed0")
    settings = ("--config", "root/nfm-seed0/config.toml", "--report-only")
    call = ("experiment", "stacked-mnist", "--run-root", "root", *settings)
    result = rims(*call, "--model", "nfm", "--show-attention", "a.png")
    assert result.code == 0
    assert result.err.splitlines()[-1] == "Written: a.png"
    with Image.open(here / "a.png") as image:
        assert image.size[0] > image.size[1] > 200
    before = tree(here)
    line = assert_one_line(rims(*call, "--model", "nfm", "--show-attention", "a.jpg"))
    assert "--show-attention must end in .png, .svg or .pdf" in line
    line = assert_one_line(rims(*call, "--model", "cnn", "--show-attention", "b.png"))
    assert "name it in --model" in line
    assert tree(here) == before


def test_attention_of_clevr_is_drawn() -> None:
    experiment = clevr(model="nfm")
    with judging(model := experiment.make_model(), 0, experiment.device):
        titles = [panel.get_title() for panel in experiment.attention(model).axes]
    assert titles[:5] == ["all heads", "head 1", "head 2", "head 3", "head 4"]
