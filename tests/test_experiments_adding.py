"""Adding: its judgement, learning and going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.configs.sequences import AddingConfig
from experiments.fit import fit
from experiments.tasks.adding import AddingExperiment
from image_cases import assert_goes_on
from sequence_cases import SMALL, TINY, TWO_CORES, Told

DATA: dict[str, Any] = {
    "train_length": 6,
    "test_lengths": "6,11",
    "steps_per_epoch": 3,
    "validation_sequences": 8,
    "test_sequences": 300,
}


def adding(**settings: Any) -> AddingExperiment:
    return AddingExperiment(AddingConfig(**{**TINY, **DATA, **settings}))


@pytest.mark.parametrize("core", TWO_CORES)
def test_run_that_is_broken_off_goes_on_exactly(tmp_path: Path, core: str) -> None:
    results = assert_goes_on(lambda: adding(model=core), tmp_path, step=4)
    assert results.steps == 6
    assert set(results.metrics) == {"error_6", "error_11"}


def test_error_is_that_of_the_last_step() -> None:
    experiment = adding()
    targets = experiment._validation.targets
    told = torch.full((6, 8, 1), 9.0)
    told[-1, :, 0] = targets + torch.tensor([0.5, -0.5] * 4)
    assert experiment.evaluate(Told(told)) == pytest.approx({"validation_error": 0.25})
    batch = next(iter(experiment.batches(0)))
    told = torch.full((6, 4, 1), 9.0)
    told[-1, :, 0] = batch.targets - 2
    loss = experiment.loss(Told(told), batch, torch.Generator())["loss"]
    assert float(loss) == pytest.approx(4.0)


def test_error_is_the_same_over_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = adding()
    model = experiment.make_model().eval()
    with torch.no_grad():
        whole = experiment.test(model)
        monkeypatch.setattr("experiments.tasks.adding.EVALUATION_BATCH", 77)
        assert experiment.test(model) == pytest.approx(whole, rel=1e-5)


def test_learns_to_add(tmp_path: Path) -> None:
    settings = {**SMALL, "batch_size": 32, "steps_per_epoch": 100, "epochs": 2}
    results = fit(adding(model="gru", **settings), tmp_path)
    assert results.metrics["error_6"] < 0.02  # always saying 1 gives 0.17


def test_shown_sequences_are_marked_at_the_same_steps() -> None:
    inputs, phases = adding().shown
    marked = inputs[..., 1].nonzero()[:, 0].unique().tolist()
    assert marked == [phase.begin for phase in phases if phase.label == "marked"] == [1, 4]
    assert [phase.begin for phase in phases[1:]] == [phase.end for phase in phases[:-1]]
