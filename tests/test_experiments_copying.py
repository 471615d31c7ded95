"""Copying: its batches, its judgement, learning and going on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.configs.sequences import CopyingConfig
from experiments.fit import fit, judging
from experiments.tasks.copying import CopyingExperiment
from image_cases import assert_goes_on
from sequence_cases import SMALL, TINY, TWO_CORES, Told, one_hot

DATA: dict[str, Any] = {
    "items": 3,
    "train_blanks": 4,
    "test_blanks": "4,9",
    "steps_per_epoch": 3,
    "validation_sequences": 6,
    "test_sequences": 7,
}


def copying(**settings: Any) -> CopyingExperiment:
    return CopyingExperiment(CopyingConfig(**{**TINY, **DATA, **settings}))


@pytest.mark.parametrize("core", TWO_CORES)
def test_run_that_is_broken_off_goes_on_exactly(tmp_path: Path, core: str) -> None:
    results = assert_goes_on(lambda: copying(model=core), tmp_path, step=4)
    assert results.steps == 6
    assert set(results.metrics) == {row.key for row in copying().rows}


def test_batches_follow_from_seed_and_epoch() -> None:
    first, again, other = (torch.cat([b.inputs for b in copying().batches(n)]) for n in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, torch.cat([b.inputs for b in copying(seed=1).batches(3)]))
    batches = list(copying().batches(0))
    assert [batch.inputs.shape for batch in batches] == [(10, 4)] * 3
    assert not torch.equal(batches[0].inputs, batches[1].inputs)


def test_only_the_recall_is_judged() -> None:
    experiment = copying()
    batch = experiment._validation
    logits = one_hot(batch.targets, 10)
    logits[:-3] = 7.0 * torch.randn(logits[:-3].shape, generator=torch.Generator().manual_seed(0))
    assert experiment.evaluate(Told(logits)) == pytest.approx(
        {"validation_cross_entropy": 0.0, "validation_accuracy": 1.0}, abs=1e-6
    )
    logits[-1, :2] = 0.0  # knows nothing of the last symbol of two sequences; 0 is the blank
    found = experiment.evaluate(Told(logits))
    assert found["validation_accuracy"] == pytest.approx(1 - 2 / 18)
    assert found["validation_cross_entropy"] == pytest.approx(2 / 18 * math.log(10), rel=1e-5)


def test_loss_is_that_of_all_steps() -> None:
    experiment = copying()
    batch = next(iter(experiment.batches(0)))
    scalars = experiment.loss(Told(torch.zeros(10, 4, 10)), batch, torch.Generator())
    assert float(scalars["loss"]) == pytest.approx(math.log(10), rel=1e-5)
    wrong_blank = one_hot(batch.targets, 10)
    wrong_blank[0] = 0.0
    scalars = experiment.loss(Told(wrong_blank), batch, torch.Generator())
    assert float(scalars["loss"]) == pytest.approx(math.log(10) / 10, rel=1e-5)
    assert float(scalars["recall_cross_entropy"]) == pytest.approx(0, abs=1e-6)


def test_tests_have_as_many_blanks_as_they_say() -> None:
    experiment, seen = copying(), []

    class Listening(Told):
        def forward(self, input: Any, state: Any = None, **_: Any) -> Any:
            seen.append(tuple(input.shape))
            return torch.zeros(*input.shape, 10), state

    experiment.test(Listening(torch.zeros(1, 1, 1)))
    assert seen == [(10, 7), (15, 7)]


def test_learns_to_copy_one_symbol(tmp_path: Path) -> None:
    settings = {**SMALL, "items": 1, "batch_size": 16, "steps_per_epoch": 60, "epochs": 2}
    results = fit(copying(model="gru", **settings), tmp_path)
    assert results.metrics["accuracy_4"] == 1.0


def test_activity_shows_what_the_sequence_consists_of() -> None:
    experiment = copying()
    with judging(model := experiment.make_model(), 0, experiment.device):
        (panel,) = experiment.activity(model).axes
    assert [text.get_text() for text in panel.texts] == ["symbols", "blanks", "recall"]
    assert [np.asarray(line.get_xdata())[0] for line in panel.lines] == [2.5, 6.5]
    (image,) = panel.images
    shares = np.asarray(image.get_array())
    assert shares.shape == (3, 10)
    assert shares.sum(0).tolist() == pytest.approx([2.0] * 10)  # k of 3 at every step
    assert "share of 6 sequences" in panel.get_title(loc="left")
