"""Training one model on one task: the loop of all supervised experiments.

A run can be stopped at any moment, by Ctrl-C or by force, and goes on from its last checkpoint when
it is started again; on a CPU it then ends with the very numbers it would have ended with, but for
those of time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Generic

import torch
from torch import nn

from experiments.configs.base import ExperimentConfig, Schedule
from experiments.experiment import Batch, Config, Experiment, State
from experiments.results import RESULTS_NAME, Results, kept_results
from experiments.snapshot import (
    Position,
    Snapshot,
    Weights,
    claimed_run,
    copy_of,
    judged_checkpoint,
    load_snapshot,
    require_same,
    run_store,
    save_snapshot,
    weights_of,
)
from lab.disk.folder import FAILURE_NAME, note_failure, read_progress
from lab.disk.log import RunLog
from lab.disk.output import write_text
from lab.reporting.pictures import write_png
from lab.running.guards import NotFinite, RunStopped, first_not_finite
from lab.running.signals import StopRequest

#: Shares of all steps at which the schedule ``steps`` divides the step size by ten: epochs 200, 400
#: and 500 of 600 in arXiv:2010.08012, appendix B.
_DROPS = (1 / 3, 2 / 3, 5 / 6)

#: Called with every row that is logged.
OnRow = Callable[[Mapping[str, float]], None]


class FitError(RunStopped):
    """A number that has to be finite is not; the last checkpoint from before is kept."""

    def __init__(self, name: str, position: Position) -> None:
        super().__init__(
            f"training stopped in epoch {position.epoch + 1}, step {position.step + 1}: {name} is "
            "no longer finite. A smaller --learning-rate may help."
        )


def fit(
    experiment: Experiment[Config, Batch], folder: Path, on_row: OnRow | None = None
) -> Results:
    """Train to the end and judge; a run that was stopped goes on, a finished one is left alone.

    A request to stop (Ctrl-C, SIGTERM) ends it after the current step, saved.

    Args:
        experiment: the task with its settings.
        folder: of the run: new, empty, or of a run with the same settings.
        on_row: called with every row that is logged.

    Returns:
        What ``results.json`` holds.

    Raises:
        FitError: if a number that has to be finite is not.
        ValueError: in one line, for a folder that cannot be used, or an unusable device.
        KeyboardInterrupt: on a request to stop, when all is saved.
    """
    from lab.running.devices import usable_device

    usable_device(experiment.config.device)
    require_same(folder, experiment.config)
    results = kept_results(folder)
    if results is not None:
        return results
    run = _Fit(experiment, folder)  # what is refused is refused before anything is written
    with claimed_run(folder, experiment.config):
        results = kept_results(folder)
        if results is not None:
            return results
        run.load()  # it may have gone on since
        try:
            results = run.run(on_row)
        except Exception as error:
            note_failure(folder, error)
            raise
        write_text(folder / RESULTS_NAME, results.to_json())
        (folder / FAILURE_NAME).unlink(missing_ok=True)
        return results


class _Fit(Generic[Config, Batch]):
    """One run."""

    def __init__(self, experiment: Experiment[Config, Batch], folder: Path) -> None:
        self.experiment = experiment
        self.config: ExperimentConfig = experiment.config
        self.folder = folder
        self.best: Weights | None
        torch.set_num_threads(self.config.threads)
        torch.manual_seed(self.config.seed)
        model = experiment.make_model().to(experiment.device)
        self.state = State(
            model=model,
            optimizers=experiment.make_optimizers(model),
            generator=torch.Generator(experiment.device).manual_seed(self.config.seed),
            max_grad_norm=self.config.max_grad_norm,
            bf16=self.config.bf16,
        )
        for optimizer in self.state.optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        self.data = experiment.data_identity
        self._total_steps = self.config.epochs * experiment.steps_per_epoch
        self.load()

    def load(self) -> None:
        """Go to where the last checkpoint was written, if there is one."""
        self.position, self.best, *_ = load_snapshot(self.folder, self.state, self.data)
        self._saved_steps = self.position.steps

    def run(self, on_row: OnRow | None) -> Results:
        """Train what is left, then judge."""
        run_store(self.folder).require_space(self.state.model)
        steps = self.position.steps
        log = RunLog(self.folder, self.config, x="step", keep_until=steps if steps else None)
        self._log = log
        with log, StopRequest() as stop:
            self.state.model.train()
            while self.position.epoch < self.config.epochs and not self._is_past_its_best():
                self._train_epoch(stop)
                self._end_epoch(log, on_row)
                self._save_if_due(stop)
            self._save()
            stop.obey()
        return self._judge()

    def _is_past_its_best(self) -> bool:
        """Whether the settings say that training ends here."""
        return 0 < self.config.patience <= self.position.since_best

    def _train_epoch(self, stop: StopRequest) -> None:
        """The steps of the epoch that are left."""
        position, steps = self.position, self.experiment.steps_per_epoch
        for batch in islice(self.experiment.batches(position.epoch), position.step, None):
            begun = time.perf_counter()  # not before: the batch had to be made, or those skipped
            self._step(batch)
            position.seconds += time.perf_counter() - begun
            if position.step < steps:  # after the last one there is a row to be written first
                self._save_if_due(stop)
        if position.step != steps:
            raise RuntimeError(f"an epoch has {position.step} batches, not {steps} as announced.")

    def _step(self, batch: Batch) -> None:
        position = self.position
        self._set_rates()
        try:
            scalars = copy_of(self.experiment.train_step(self.state, batch))
            for name, value in scalars.items():
                if not math.isfinite(value):
                    raise NotFinite(name)
        except NotFinite as error:
            raise FitError(error.name, position) from None
        for name, value in scalars.items():
            position.sums[name] = position.sums.get(name, 0.0) + value
        position.summed += 1
        position.step += 1
        position.steps += 1

    def _set_rates(self) -> None:
        factor = rate_factor(self.config.schedule, self.position.steps / self._total_steps)
        for optimizer in self.state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def _end_epoch(self, log: RunLog, on_row: OnRow | None) -> None:
        position = self.position
        last = position.epoch + 1 == self.config.epochs
        if last or (position.epoch + 1) % self.config.evaluate_every == 0:
            self._require_finite_weights()
            row = self._row()
            self._write_pictures()
            log.write(row)
            position.sums, position.summed = {}, 0
            self._keep_best(row)
            if on_row is not None:
                on_row(row)
        position.epoch += 1
        position.step = 0

    def _row(self) -> dict[str, float]:
        position, state = self.position, self.state
        with judging(state.model, self.config.seed, state.generator.device):
            judged = self.experiment.evaluate(state.model)
        first, *_ = state.optimizers.values()
        row = {
            "epoch": position.epoch + 1,
            "step": position.steps,
            "seconds": position.seconds,
            "learning_rate": first.param_groups[0]["lr"],
            **{name: total / position.summed for name, total in position.sums.items()},
        }
        if twice := row.keys() & judged.keys():
            raise RuntimeError(f"evaluate() and the loss both name a column {min(twice)!r}.")
        return {**row, **judged}

    def _write_pictures(self) -> None:
        state, steps = self.state, self.position.steps
        with judging(state.model, self.config.seed, state.generator.device):
            pictures = self.experiment.pictures(state.model)
        for name, picture in pictures.items():
            write_png(self.folder / f"{name}-{steps:07d}.png", picture)

    def _keep_best(self, row: Mapping[str, float]) -> None:
        selection, position = self.experiment.selection, self.position
        if selection is None:
            return
        value = row[selection.column]
        position.since_best += 1
        if math.isfinite(value) and selection.improves(value, position.best_value):
            position.best_value, position.best_epoch = value, position.epoch + 1
            position.since_best = 0
            self.best = weights_of(self.state.model)

    def _save_if_due(self, stop: StopRequest) -> None:
        if stop.wanted:
            self._save()
            stop.obey()
        if self.position.steps - self._saved_steps >= self.config.checkpoint_every:
            self._save()

    def _save(self) -> None:
        self._require_finite_weights()
        self._log.sync()
        settings = self.config.settings_with_effect()
        snapshot = Snapshot(self.position, self.best, self.data, settings)
        save_snapshot(self.folder, self.state, snapshot)
        self._saved_steps = self.position.steps

    def _require_finite_weights(self) -> None:
        """Broken weights, as too large a step leaves, never replace good ones."""
        broken = first_not_finite(self.state.model.named_parameters())
        if broken is not None:
            raise FitError(f"parameter {broken}", self.position)

    def _judge(self) -> Results:
        model, position = self.state.model, self.position
        if self.best is not None:
            model.load_state_dict(self.best)
        with judging(model, self.config.seed, self.state.generator.device):
            metrics = dict(self.experiment.test(model))
        metrics |= self.experiment.test_of_progress(read_progress(self.folder))
        return Results(
            metrics=metrics,
            parameters=sum(p.numel() for p in model.parameters()),
            seconds=position.seconds,
            steps=position.steps,
            judged_epoch=position.best_epoch or position.epoch,
            data=self.data,
            checkpoint=judged_checkpoint(self.folder),
        )


def rate_factor(schedule: Schedule, done: float) -> float:
    """The factor of the step size when a share ``done`` of all steps has been made.

    Example:
        >>> [rate_factor(name, 0.5) for name in ("constant", "linear", "steps")]
        [1.0, 0.5, 0.1]
    """
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "steps":
        return math.prod(0.1 for drop in _DROPS if done >= drop)
    return 1.0


@contextmanager
def judging(model: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; random draws neither depend on others nor change them.

    Args:
        model: is in training mode afterwards.
        seed: seed of the draws.
        device: device of the model.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            model.train()
