"""Small sets of images in the published formats, and what the tasks on images share in tests."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from experiment_cases import assert_same, left_by
from experiments.experiment import Experiment, State
from experiments.fit import fit, judging
from experiments.results import Results
from test_experiments_data_cifar import BATCHES, python2_pickle


class Crash(Exception):
    """Like a power cut, as far as the run is concerned."""


def write_digits(folder: Path, total: int = 60) -> Path:
    """A small MNIST: bars whose place is their class; a fifth of them become the test split."""
    labels = np.arange(total, dtype=np.uint8) % 10
    images = np.zeros((total, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4:24, 2 + 2 * label : 6 + 2 * label] = 255
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">4i", 0x803, total, 28, 28)
    (folder / "t10k-images-idx3-ubyte").write_bytes(head + images.tobytes())
    (folder / "t10k-labels-idx1-ubyte").write_bytes(
        struct.pack(">2i", 0x801, total) + labels.tobytes()
    )
    return folder


def cifar_values(seed: int, labels: list[int]) -> NDArray[np.uint8]:
    """Rows of a batch: noise, in which the row of pixels of the class's number is red."""
    values = np.random.default_rng(seed).integers(0, 128, (len(labels), 3, 32, 32), np.uint8)
    for image, label in zip(values, labels, strict=True):
        image[0, 2 * label : 2 * label + 3] = 255
    return values.reshape(len(labels), -1)


def write_cifar10(folder: Path, per_file: int = 4) -> Path:
    """A small CIFAR-10 in the python form."""
    target = folder / "cifar-10-batches-py"
    target.mkdir(parents=True)
    for seed, name in enumerate([*BATCHES, "test_batch"]):
        labels = [(seed + i) % 10 for i in range(per_file)]
        content = python2_pickle("labels", cifar_values(seed, labels), labels)
        (target / name).write_bytes(content)
    return folder


def stopping(experiment: Experiment[Any, Any], step: int) -> Experiment[Any, Any]:
    """The same, which breaks off before the step of this number."""
    train_step, taken = experiment.train_step, 0

    def limited(state: State, batch: Any) -> Any:
        nonlocal taken
        if taken == step:
            raise Crash
        taken += 1
        return train_step(state, batch)

    experiment.train_step = limited  # type: ignore[method-assign]
    return experiment


def pictures_in(folder: Path) -> dict[str, bytes]:
    """All PNG files of a run."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def assert_goes_on(make: Callable[[], Experiment[Any, Any]], folder: Path, step: int) -> Results:
    """A run that is broken off ends as one that is not: weights, optimisers, rows, pictures."""
    whole = fit(make(), folder / "whole")
    with pytest.raises(Crash):
        fit(stopping(make(), step), folder / "broken")
    results = fit(make(), folder / "broken")
    assert results._replace(seconds=0) == whole._replace(seconds=0)
    assert_same(left_by(folder / "broken"), left_by(folder / "whole"))
    assert pictures_in(folder / "broken") == pictures_in(folder / "whole")
    return whole


def assert_attention_is_drawn(experiment: Experiment[Any, Any]) -> None:
    """A panel for all heads of its NFMs, and one for each."""
    with judging(model := experiment.make_model(), 0, experiment.device):
        panels = experiment.attention(model).axes
    assert [panel.get_title() for panel in panels[:2]] == ["all heads", "head 1"]
