"""What is kept with a run: its best weights, what its data were, the time of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment_cases import Batch, LineExperiment, assert_same, left_by, line, stop_at
from experiments.data.common import identity
from experiments.experiment import Experiment, State
from experiments.fit import fit
from experiments.snapshot import load_weights, run_store, weights_of

#: Falls from the first epoch to the second and rises then.
_LOSSES = (3.0, 1.0, 2.0, 4.0)


class Crash(Exception):
    """Like a power cut, as far as the run is concerned."""


def crash() -> None:
    raise Crash


class Told(LineExperiment):
    """The epochs are judged as they are told to be; what they ended with is noted."""

    losses = _LOSSES

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.seen: dict[float, dict[str, Tensor]] = {}  # weights by loss
        self.tested: dict[str, Tensor] = {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        loss = self.losses[(self.first + self.taken) // self.steps_per_epoch - 1]
        self.seen[loss] = weights_of(model)
        return {"validation_loss": loss}

    first = 0  # steps made before

    def test(self, model: nn.Module) -> dict[str, float]:
        self.tested = weights_of(model)
        return {"error": 0.0, "share": 1.0}


def told(**settings: Any) -> Told:
    return Told(line(**settings).config)


# Best weights -----------------------------------------------------------------------------------


def test_weights_and_epoch_agree_after_a_crash_between_the_two(tmp_path: Path) -> None:
    crashing = told(checkpoint_every=7)  # of 6 steps an epoch: at 7 the second is not judged yet
    crashing.before_step = stop_at(13, crash)
    with pytest.raises(Crash):
        fit(crashing, tmp_path)
    assert left_by(tmp_path)["position"]["best_epoch"] == 1
    again = told(checkpoint_every=7)
    again.first, again.losses = 7, (3.0, 5.0, 6.0, 7.0)  # as on a machine that rounds otherwise
    results = fit(again, tmp_path)
    assert results.judged_epoch == 1
    assert_same(again.tested, crashing.seen[3.0])
    shown = again.make_model()
    load_weights(tmp_path, shown)
    assert_same(weights_of(shown), crashing.seen[3.0])


# Data -------------------------------------------------------------------------------------------


class FromFile(LineExperiment):
    data_identity = "5 samples"


class FromOtherFile(LineExperiment):
    data_identity = "7 samples"


def test_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    crashing = FromFile(line().config)
    crashing.before_step = stop_at(7, crash)
    with pytest.raises(Crash):
        fit(crashing, tmp_path)
    path = run_store(tmp_path).load().path
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"other data \(5 samples\) than .* \(7 samples\)\.") as e:
        fit(FromOtherFile(line().config), tmp_path)
    assert "\n" not in str(e.value)
    assert path.read_bytes() == before
    assert fit(FromFile(line().config), tmp_path).data == "5 samples"


def test_identity_tells_arrays_apart() -> None:
    images = torch.arange(24, dtype=torch.uint8).reshape(4, 3, 2).numpy()
    labels = torch.arange(4).numpy()
    found = identity((images, labels), (images[:2], labels[:2]))
    assert found.startswith("4 and 2 samples, checksum ")
    assert identity((images, labels), (images[:2], labels[:2])) == found
    assert identity((images, labels), (images[:2], labels[2:])) != found
    assert identity((images[:, ::-1], labels), (images[:2], labels[:2])) != found


# Time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, 9])
def test_time_is_that_of_steps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int | None
) -> None:
    now = 0.0

    class Clocked(LineExperiment):
        def batches(self, epoch: int) -> Iterator[Batch]:
            nonlocal now
            for batch in super().batches(epoch):
                now += 100
                yield batch

        def train_step(self, state: State, batch: Batch) -> dict[str, float | Tensor]:
            nonlocal now
            now += 1
            return super().train_step(state, batch)

    monkeypatch.setattr("experiments.fit.time.perf_counter", lambda: now)
    if step is not None:
        crashing = Clocked(line().config)
        crashing.before_step = stop_at(step, crash)
        with pytest.raises(Crash):
            fit(crashing, tmp_path)
    assert fit(Clocked(line().config), tmp_path).seconds == 24


# Tasks ------------------------------------------------------------------------------------------


def test_task_with_steps_of_its_own_needs_no_loss() -> None:
    task: Experiment[Any, Any] = line()
    assert "loss" not in Experiment.__abstractmethods__
    with pytest.raises(NotImplementedError, match="LineExperiment has neither loss nor train_step"):
        Experiment.loss(task, nn.Identity(), None, torch.Generator())
