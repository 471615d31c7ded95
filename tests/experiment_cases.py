"""A task that trains in a moment, for tests of what all tasks share."""

from __future__ import annotations

import csv
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from experiments.configs.base import ExperimentConfig
from experiments.experiment import Experiment, Published, Row, Selection, State
from experiments.registry import Task
from experiments.snapshot import run_store
from lab.disk.folder import PROGRESS_NAME
from lab.settings import changed, option

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class LineConfig(ExperimentConfig):
    """Settings of a regression."""

    task: ClassVar[str] = "line"

    model: Literal["linear", "mlp", "broken"] = option("linear", "Network", "Which.")
    samples: int = option(22, "Data", "Points.", low=1)
    epochs: int = changed(ExperimentConfig, "epochs", 4)
    batch_size: int = changed(ExperimentConfig, "batch_size", 4)
    checkpoint_every: int = changed(ExperimentConfig, "checkpoint_every", 4)


class LineExperiment(Experiment[LineConfig, Batch]):
    """Points near a line; dropout and a noisy loss use both kinds of random state."""

    selection: Selection | None = Selection("validation_loss", "lower")
    rows: Sequence[Row] = (Row("share", "near the line"), Row("error", "error", "", "lower", 0.0))
    notes = ("A note.",)

    #: Called before every step with its number, from 0 in this process.
    before_step: Callable[[int, State], None] = staticmethod(lambda _number, _state: None)
    taken = 0

    @property
    def published(self) -> dict[str, dict[str, Published]]:
        return {"linear": {"share": Published(90.0, 1.5)}, "other": {"error": Published(0.25)}}

    def check(self) -> None:
        if self.config.samples == 13:
            raise ValueError("samples 13 bring bad luck; give another number.")
        super().check()

    def make_model(self) -> nn.Module:
        if self.config.model == "linear":
            return nn.Sequential(nn.Dropout(0.2), nn.Linear(2, 1))
        return nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1))

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.config.samples // self.config.batch_size)

    def _points(self, rng: np.random.Generator, number: int) -> Batch:
        x = rng.normal(size=(number, 2)).astype(np.float32)
        y = (x @ np.array([[1.0], [-2.0]], np.float32)) + 0.1
        return torch.from_numpy(x), torch.from_numpy(y)

    def batches(self, epoch: int) -> Iterator[Batch]:
        rng = self.rng(epoch)
        for start in range(0, self.config.samples, self.config.batch_size):
            yield self._points(rng, min(self.config.batch_size, self.config.samples - start))

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        x, y = batch
        assert model.training
        noise = 0.01 * torch.randn(y.shape, generator=generator)
        loss = (model(x) - y - noise).square().mean()
        if self.config.model == "broken":
            loss = loss / 0
        return {"loss": loss, "noise": noise.mean()}

    def train_step(self, state: State, batch: Batch) -> dict[str, float | Tensor]:
        self.before_step(self.taken, state)
        self.taken += 1
        return super().train_step(state, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(3)  # must not change what training draws
        x, y = self._points(self.rng(10**6), 16)
        return {"validation_loss": float((model(x) - y).square().mean())}

    def test(self, model: nn.Module) -> dict[str, float]:
        error = self.evaluate(model)["validation_loss"]
        return {"error": error, "share": 1 / (1 + error)}


class Slow(LineExperiment):
    """Leaves time for a signal."""

    before_step = staticmethod(lambda _number, _state: time.sleep(0.05))


LINE = Task(LineConfig, "experiment_cases:LineExperiment", "A line.")


def line(**settings: Any) -> LineExperiment:
    return LineExperiment(LineConfig(**settings))


def stop_at(number: int, what: Callable[[], None]) -> Callable[[int, State], None]:
    """Do something before the step of this number."""

    def before(step: int, _state: State) -> None:
        if step == number:
            what()

    return before


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def left_by(folder: Path) -> dict[str, Any]:
    """All that a run leaves but times."""
    stored = run_store(folder).load()
    content = {**stored.tensors, **stored.about}
    content["position"].pop("seconds")
    with (folder / PROGRESS_NAME).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("seconds")
    return {**content, "rows": rows}


def assert_same(first: Any, second: Any) -> None:
    """Equal to the last bit, whatever they are made of."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same(first[name], second[name])
    elif isinstance(first, Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


if __name__ == "__main__":  # train in a process that can be killed: FOLDER STEP, or the command
    from experiments.commands.experiment import experiment, task_command

    if sys.argv[1] == "experiment":
        import cli

        experiment.add_command(task_command(LINE._replace(experiment="experiment_cases:Slow")))
        cli.main()
    else:
        from experiments.fit import fit

        torch.set_num_threads(1)
        mine = line()
        mine.before_step = stop_at(int(sys.argv[2]), kill)
        fit(mine, Path(sys.argv[1]))
