"""The training loop of experiments: exact continuation, interruption, numbers that break."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from command_line import ROOT, tree
from experiment_cases import (
    Batch,
    LineExperiment,
    assert_same,
    left_by,
    line,
    stop_at,
)
from experiments import fit as fitting
from experiments.experiment import Selection, State
from experiments.fit import FitError, fit
from experiments.results import RESULTS_NAME, Results, read_results
from experiments.snapshot import run_store
from lab.disk.folder import FAILURE_NAME, PROGRESS_NAME, read_progress
from lab.disk.lock import lock_folder
from lab.disk.store import FOLDER_NAME, has_checkpoint
from lab.running import signals
from selection import short

#: Steps of the whole run: 4 epochs of 6.
STEPS = 24


class Crash(Exception):
    """Like a power cut, as far as the run is concerned."""


def crash() -> None:
    raise Crash


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped. Only to be read."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("fit") / "whole"
    fit(line(), folder)
    return folder


def assert_continues_to(folder: Path, whole: Path) -> None:
    """Continue a run; it ends as one that was never stopped."""
    results = fit(line(), folder)
    assert_same(left_by(folder), left_by(whole))
    expected = read_results(whole)
    assert expected is not None
    assert results._replace(seconds=0) == expected._replace(seconds=0)
    assert not list(folder.glob("*.tmp"))


# Continuing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 3, 4, 5, 6, 7, 11, 12, 13, 23])
def test_crashed_run_continues_exactly(tmp_path: Path, whole: Path, step: int) -> None:
    crashing = line()
    crashing.before_step = stop_at(step, crash)
    with pytest.raises(Crash):
        fit(crashing, tmp_path / "run")
    assert_continues_to(tmp_path / "run", whole)


def test_run_that_crashes_again_and_again_continues_exactly(tmp_path: Path, whole: Path) -> None:
    for _ in range(5):
        crashing = line()
        crashing.before_step = stop_at(5, crash)
        with pytest.raises(Crash):
            fit(crashing, tmp_path / "run")
    assert_continues_to(tmp_path / "run", whole)


@pytest.mark.parametrize("step", short([2, 14], 0))
def test_killed_process_continues_exactly(tmp_path: Path, whole: Path, step: int) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "experiment_cases.py", str(folder), str(step)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert has_checkpoint(folder) == (step > 4)
    (folder / FOLDER_NAME).mkdir(exist_ok=True)
    half = folder / FOLDER_NAME / "00000009.json.123.tmp"
    half.write_bytes(b"half")
    assert_continues_to(folder, whole)
    assert not half.exists()


@pytest.mark.parametrize("place", ["save_snapshot", "weights_of", "judging", "write_text"])
@pytest.mark.parametrize("time", [0, 2])
def test_crash_while_saving_or_judging_continues_exactly(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, place: str, time: int
) -> None:
    original, calls = getattr(fitting, place), []

    def broken(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > time:
            raise Crash
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, place, broken)
        try:
            fit(line(), tmp_path / "run")
        except Crash:
            pass
        else:
            assert len(calls) <= time  # it is not called so often
    assert_continues_to(tmp_path / "run", whole)


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path, whole: Path) -> None:
    interrupted = line(checkpoint_every=1000)
    interrupted.before_step = stop_at(8, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, tmp_path / "run")
    assert interrupted.taken == 9
    assert left_by(tmp_path / "run")["position"]["steps"] == 9
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "run" / FAILURE_NAME).exists()
    assert_continues_to(tmp_path / "run", whole)


def test_second_ctrl_c_stops_at_once(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST", 0.0)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    interrupted = line()
    interrupted.before_step = stop_at(8, twice)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, tmp_path / "run")
    assert left_by(tmp_path / "run")["position"]["steps"] == 8  # the last one, every four steps
    assert_continues_to(tmp_path / "run", whole)


def test_finished_run_is_left_alone(whole: Path) -> None:
    before = {name: content for name, content in tree(whole).items() if name != ".lock"}
    again = line()
    results = fit(again, whole)
    assert again.taken == 0
    assert results == read_results(whole)
    assert {name: content for name, content in tree(whole).items() if name != ".lock"} == before


def test_settings_without_effect_may_change(tmp_path: Path, whole: Path) -> None:
    crashing = line(checkpoint_every=2)
    crashing.before_step = stop_at(7, crash)
    with pytest.raises(Crash):
        fit(crashing, tmp_path / "run")
    assert_continues_to(tmp_path / "run", whole)


def test_evaluation_does_not_change_training(tmp_path: Path, whole: Path) -> None:
    fit(line(evaluate_every=3), tmp_path / "run")
    mine, other = left_by(tmp_path / "run"), left_by(whole)
    assert_same(mine["model"], other["model"])
    assert [row["epoch"] for row in mine["rows"]] == ["3", "4"]


# Refused ----------------------------------------------------------------------------------------


def test_other_settings_are_refused(tmp_path: Path, whole: Path) -> None:
    before = tree(whole)
    with pytest.raises(ValueError, match=r"made with learning_rate=0\.001, now asked for 0\.1"):
        fit(line(learning_rate=0.1), whole)
    assert tree(whole) == before


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="nothing was changed"):
        fit(line(), tmp_path)
    assert list(tree(tmp_path)) == ["notes.txt"]


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    try:
        with pytest.raises(ValueError, match="in use"):
            fit(line(), tmp_path)
    finally:
        lock.release()


def test_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    crashing = line()
    crashing.before_step = stop_at(7, crash)
    with pytest.raises(Crash):
        fit(crashing, tmp_path)
    run_store(tmp_path).load().path.write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged"):
        fit(line(), tmp_path)


# Numbers that break -----------------------------------------------------------------------------


def _nan_loss(state: State) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1] * torch.nan

    state.model = Broken().train()


def _inf_gradient(state: State) -> None:
    state.model[1].weight.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[index]


@pytest.mark.parametrize(
    ("break_it", "name"), [(_nan_loss, "loss"), (_inf_gradient, "the gradient of 1.weight")]
)
def test_number_that_is_not_finite_ends_training(
    tmp_path: Path, break_it: Callable[[State], None], name: str
) -> None:
    broken = line()
    broken.before_step = lambda step, state: break_it(state) if step == 9 else None
    with pytest.raises(FitError, match=rf"epoch 2, step 4: {name} is no longer finite\. A sm"):
        fit(broken, tmp_path)
    left = left_by(tmp_path)
    assert left["position"]["steps"] == 8
    assert all(bool(value.isfinite().all()) for value in left["model"].values())
    assert name in (tmp_path / FAILURE_NAME).read_text()
    fit(line(), tmp_path)
    assert not (tmp_path / FAILURE_NAME).exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    def fill(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        optimizer.param_groups[0]["params"][0].data.fill_(torch.inf)

    def spoil(step: int, state: State) -> None:
        if step == 7:
            state.optimizers["main"].register_step_post_hook(fill)

    broken = line()
    broken.before_step = spoil
    with pytest.raises(FitError, match=r"parameter 1\.weight is no longer finite"):
        fit(broken, tmp_path)
    assert left_by(tmp_path)["position"]["steps"] == 4


def test_wrong_number_of_batches_is_noticed(tmp_path: Path) -> None:
    class Short(LineExperiment):
        steps_per_epoch = 7

    with pytest.raises(RuntimeError, match="an epoch has 6 batches, not 7 as announced"):
        fit(Short(line().config), tmp_path)


# What is made of the settings -------------------------------------------------------------------


def test_best_weights_are_judged(tmp_path: Path) -> None:
    results = fit(line(learning_rate=0.5, epochs=6), tmp_path)
    losses = read_progress(tmp_path)["validation_loss"]
    best = min(losses)
    assert results.judged_epoch == losses.index(best) + 1
    assert results.judged_epoch < 6  # else the test shows nothing
    assert results.metrics["error"] == pytest.approx(best, rel=1e-5)


def test_without_selection_the_last_weights_are_judged(tmp_path: Path) -> None:
    class Last(LineExperiment):
        selection = None

    results = fit(Last(line(learning_rate=0.5, epochs=6).config), tmp_path)
    assert left_by(tmp_path)["best"] is None
    assert results.judged_epoch == 6
    last = read_progress(tmp_path)["validation_loss"][-1]
    assert results.metrics["error"] == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize(
    ("better", "value", "on", "improves"),
    [
        ("higher", 2, 1, True),
        ("higher", 1, 1, False),
        ("lower", 2, 1, False),
        ("lower", 0, 1, True),
    ],
)
def test_selection(better: Any, value: float, on: float, improves: bool) -> None:
    assert Selection("x", better).improves(value, on) == improves
    assert Selection("x", better).improves(value, None)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule_falls_from_the_learning_rate_to_nearly_zero(
    tmp_path: Path, schedule: str
) -> None:
    rates: list[float] = []
    mine = line(schedule=schedule, learning_rate=0.1)
    mine.before_step = lambda _, state: rates.append(state.optimizers["main"].param_groups[0]["lr"])
    fit(mine, tmp_path)
    assert (len(rates), rates[0]) == (STEPS, 0.1)
    if schedule == "constant":
        assert set(rates) == {0.1}
    else:
        assert rates == sorted(rates, reverse=True)
        assert rates[STEPS // 2] == pytest.approx(0.05)
        assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimizer_is_the_one_asked_for(tmp_path: Path, optimizer: str) -> None:
    mine = line(optimizer=optimizer, weight_decay=0.25, momentum=0.5)
    made = mine.make_optimizers(mine.make_model())["main"]
    assert type(made).__name__.lower() == optimizer
    assert made.param_groups[0]["weight_decay"] == 0.25
    assert optimizer != "sgd" or made.param_groups[0]["momentum"] == 0.5


def test_gradients_are_scaled_down(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.tensor([3.0]))
    model = nn.Module()
    model.weight = parameter
    state = State(model, {"main": SGD([parameter], lr=1.0)}, torch.Generator(), max_grad_norm=0.5)
    state.descend((100 * parameter).sum())
    assert parameter.item() == pytest.approx(2.5)


class TwoOptimizers(LineExperiment):
    """Every other parameter has an optimiser of its own, used in turn, as of a GAN."""

    selection = None

    def make_optimizers(self, model: nn.Module) -> dict[str, Optimizer]:
        weight, bias = model.parameters()
        return {"weight": SGD([weight], lr=0.1), "bias": SGD([bias], lr=0.2, momentum=0.9)}

    def train_step(self, state: State, batch: Batch) -> dict[str, float | Tensor]:
        self.before_step(self.taken, state)
        self.taken += 1
        found: dict[str, float | Tensor] = {}
        for name in state.optimizers:
            loss = self.loss(state.model, batch, state.generator)["loss"]
            state.descend(loss, name)
            found[f"{name}_loss"] = loss.detach()
        return found


def test_several_optimizers_continue_exactly(tmp_path: Path) -> None:
    config = line(schedule="linear").config
    fit(TwoOptimizers(config), tmp_path / "whole")
    crashing = TwoOptimizers(config)
    crashing.before_step = stop_at(9, crash)
    with pytest.raises(Crash):
        fit(crashing, tmp_path / "run")
    fit(TwoOptimizers(config), tmp_path / "run")
    assert_same(left_by(tmp_path / "run"), left_by(tmp_path / "whole"))
    assert set(left_by(tmp_path / "run")["optimizers"]) == {"weight", "bias"}


def test_results_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    results = Results({"a": float("nan"), "b": 1.0}, 1, 1.0, 1, 1)
    (tmp_path / RESULTS_NAME).write_text(results.to_json())
    found = read_results(tmp_path)
    assert found is not None
    assert found.metrics == {"b": 1.0}
    (tmp_path / RESULTS_NAME).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        read_results(tmp_path)


def test_table_that_lost_rows_is_gone_on_with(tmp_path: Path) -> None:
    crashing = line()
    crashing.before_step = stop_at(17, crash)
    with pytest.raises(Crash):
        fit(crashing, tmp_path)
    text = (tmp_path / PROGRESS_NAME).read_text()
    (tmp_path / PROGRESS_NAME).write_text(text.splitlines()[0] + "\n")
    fit(line(), tmp_path)
    assert read_progress(tmp_path)["epoch"] == [3, 4]
