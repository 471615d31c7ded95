"""What ends a run before its time, and what does not: numbers, disks, logs, other writers."""

from __future__ import annotations

import csv
import errno
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.learning import train as training
from agents.learning.checkpoint import load_checkpoint
from agents.learning.ppo import update
from agents.learning.resuming import read_run
from agents.learning.rollout import Rollout
from agents.learning.train import Trainer
from command_line import ENV, ROOT, TOY, TRAIN, Rims, assert_one_line, process, tree, wait_for_rows
from lab.disk.folder import CONFIG_NAME, PROGRESS_NAME, read_progress, require_space
from lab.disk.log import RunLog
from lab.running.guards import CannotSave, RunStopped, TrainingError, first_not_finite
from selection import short
from test_agents_resume import go_on, left, make_config

# Numbers ----------------------------------------------------------------------------------------


def test_first_broken_tensor_is_named() -> None:
    fine, broken = torch.ones(2), torch.tensor([1.0, math.inf])
    assert first_not_finite([("a", fine), ("b", None)]) is None
    assert first_not_finite([("a", fine), ("b", broken), ("c", broken)]) == "b"


def break_rollout(field: str) -> Callable[[Trainer, Rollout], Rollout]:
    def change(_: Trainer, rollout: Rollout) -> Rollout:
        getattr(rollout, field)[0, 0] = math.nan
        return rollout

    return change


def break_weight(trainer: Trainer, rollout: Rollout) -> Rollout:
    with torch.no_grad():
        trainer.policy.critic.weight[0, 0] = math.inf
    return rollout


def break_gradient(trainer: Trainer, rollout: Rollout) -> Rollout:
    trainer.policy.actor.weight.register_hook(lambda g: g * math.nan)  # type: ignore[no-untyped-call]
    return rollout


@pytest.mark.parametrize(
    ("change", "named"),
    short(
        [
            (break_rollout("rewards"), "one of the rollout's rewards"),
            (break_rollout("values"), "one of the rollout's values"),
            (break_rollout("log_probs"), "policy_loss, value_loss or entropy"),
            (break_weight, "policy_loss, value_loss or entropy"),
            (break_gradient, "the gradient of actor.weight"),
        ],
        *(0, 2, 4),
    ),
    ids=["reward", "value", "log_prob", "weight", "gradient"],
)
def test_broken_number_stops_in_its_update_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, named: str
) -> None:
    trainer = Trainer(make_config(core="none", checkpoint_every=1), tmp_path / "run")

    def broken(policy: Any, optimizer: Any, rollout: Rollout, *rest: Any) -> dict[str, float]:
        if trainer.progress.updates == 2:
            rollout = change(trainer, rollout)
        return update(policy, optimizer, rollout, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "update", broken)
        with pytest.raises(TrainingError, match=f"update 3: {named} is no longer finite"):
            trainer.run()
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.updates == 2
    assert all(bool(weight.isfinite().all()) for weight in checkpoint.policy.values())
    go_on(tmp_path / "run")  # the fault is gone
    assert load_checkpoint(tmp_path / "run").updates > 10


def test_gradient_that_is_broken_changes_no_weight(tmp_path: Path) -> None:
    trainer = Trainer(make_config(core="none"), tmp_path / "run")

    def spoil(row: Any) -> None:
        if row["update"] == 2:
            spoil.weights = {n: p.clone() for n, p in trainer.policy.named_parameters()}  # type: ignore[attr-defined]
            trainer.policy.actor.weight.register_hook(lambda g: g * math.inf)  # type: ignore[no-untyped-call]

    with pytest.raises(TrainingError, match="gradient"):
        trainer.run(spoil)
    for name, parameter in trainer.policy.named_parameters():
        assert torch.equal(parameter, spoil.weights[name])  # type: ignore[attr-defined]


# Disks ------------------------------------------------------------------------------------------


def test_disk_without_room_is_found_before_training(
    tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    line = assert_one_line(rims(*TRAIN, *TOY, "--run-dir", "run"), code=1)
    assert "has room for 0 MB" in line
    assert not (tmp_path / "here" / "run" / PROGRESS_NAME).exists()
    monkeypatch.undo()
    require_space(tmp_path, 1)


LIMITED = ("train", "--env", ENV, *TOY, "--encoder-size", "64", "--run-dir", "run")


@contextmanager
def limited(megabytes: float) -> Iterator[None]:
    """Files may not become larger, also those of processes begun meanwhile; as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 2**20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_folder_whose_files_cannot_be_written_is_one_line(tmp_path: Path, rims: Rims) -> None:
    with limited(0.03):
        line = assert_one_line(rims(*LIMITED))
    assert "cannot be written (File too large)" in line
    assert not (tmp_path / "here" / "run" / CONFIG_NAME).exists()


@pytest.mark.long
@pytest.mark.parametrize(("megabytes", "when"), [(0.03, "before"), (0.3, "later")])
def test_files_that_cannot_be_written_are_one_line(
    tmp_path: Path, megabytes: float, when: str
) -> None:
    with limited(megabytes):
        result = subprocess.run(
            [sys.executable, "-m", "cli", *LIMITED],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    if when == "before":
        assert result.returncode == 2
        assert "cannot be written (File too large)" in last
        assert not (tmp_path / "run" / CONFIG_NAME).exists()
    else:
        assert result.returncode == 1
        assert "no checkpoint can be written to 'run' (File too large)" in last
        assert "No checkpoint was saved" in last


def test_full_disk_later_keeps_the_last_checkpoint_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(core="none", checkpoint_every=2)
    Trainer(config, tmp_path / "whole").run()
    trainer = Trainer(config, tmp_path / "run")
    fsync = os.fsync

    def full(file: int) -> None:
        if trainer.progress.updates >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CannotSave, match=r"No space left on device.*resume the run"):
            trainer.run()
    assert load_checkpoint(tmp_path / "run").updates == 4
    go_on(tmp_path / "run")
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_folder_that_cannot_be_written_is_found_first(tmp_path: Path, rims: Rims) -> None:
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    assert "cannot be written" in assert_one_line(rims(*TRAIN, *TOY, "--run-dir", "../file/run"))
    assert tree(tmp_path) == before


# Logs -------------------------------------------------------------------------------------------


class Settings:
    def to_toml(self) -> str:
        return ""


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / PROGRESS_NAME).open(newline="") as file:
        return list(csv.DictReader(file))


class FullFile:
    """A file on a disk that is full for a while: it takes half of what it is given."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.full = False

    def write(self, content: Any) -> int:
        if self.full:
            self.file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_rows_wait_until_the_table_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, Settings()) as log:
        table = vars(log)["_table"]
        file = FullFile(vars(table)["_file"])
        vars(table)["_file"] = file
        for step in range(6):
            file.full = step in (2, 3)
            log.write({"env_steps": step, "loss": step / 3})
            expected = step + 1 if step not in (2, 3) else 2
            assert len(rows_of(tmp_path)) == expected  # whole rows only
    assert [row["env_steps"] for row in rows_of(tmp_path)] == list("012345")
    warning = capsys.readouterr().err
    assert warning.count("Warning:") == 1
    assert "No space left" in warning


def test_trouble_with_events_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    config = make_config(core="none")
    Trainer(config, tmp_path / "run").run()
    assert len(rows_of(tmp_path / "run")) > 10
    assert capsys.readouterr().err.count("no more events") == 1


def test_trouble_of_the_thread_that_writes_events_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer.record_writer import (  # type: ignore[import-untyped]
        RecordWriter,
    )

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill_the_disk(_: object) -> None:
        monkeypatch.setattr(RecordWriter, "flush", fail)
        monkeypatch.setattr(RecordWriter, "write", fail)

    Trainer(make_config(core="none"), tmp_path / "run").run(fill_the_disk)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "no more events" in err or "last events" in err


def test_table_that_cannot_be_closed_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Network file systems tell of a full disk only then."""
    with RunLog(tmp_path, Settings()) as log:
        log.write({"env_steps": 1})
        table = vars(log)["_table"]
        file = vars(table)["_file"]

        class Failing(FullFile):
            def close(self) -> None:
                self.file.close()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        vars(table)["_file"] = Failing(file)
    assert "rows may be missing" in capsys.readouterr().err


def test_continued_table_keeps_rows_up_to_its_checkpoint(tmp_path: Path) -> None:
    with RunLog(tmp_path, Settings()) as log:
        for step in (3, 6, 9):
            log.write({"env_steps": step, "loss": 1.5})
    with (tmp_path / PROGRESS_NAME).open("a") as file:
        file.write("12,")  # cut by a crash
    with RunLog(tmp_path, Settings(), keep_until=6) as log:
        assert read_progress(tmp_path)["env_steps"] == [3, 6]
        log.write({"loss": 2.5, "env_steps": 8})  # columns stay in their order
    assert read_progress(tmp_path) == {"env_steps": [3, 6, 8], "loss": [1.5, 1.5, 2.5]}


def test_columns_of_an_earlier_version_stay(tmp_path: Path) -> None:
    (tmp_path / PROGRESS_NAME).write_text("env_steps,old\n3,1\n")
    with RunLog(tmp_path, Settings(), keep_until=6) as log:
        log.write({"env_steps": 8, "new": 2.5})
    columns = read_progress(tmp_path)
    assert columns["env_steps"] == [3, 8]
    assert list(columns) == ["env_steps", "old"]
    assert math.isnan(columns["old"][1])


@pytest.mark.parametrize("content", ["", "other,columns\n1,2\n", "\xff"])
def test_table_of_something_else_begins_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / PROGRESS_NAME).write_text(content)
    with RunLog(tmp_path, Settings(), keep_until=6) as log:
        log.write({"env_steps": 8, "loss": 2.5})
    assert read_progress(tmp_path) == {"env_steps": [8], "loss": [2.5]}


def test_lost_terminal_ends_nothing(tmp_path: Path) -> None:
    """Whoever looks on is told of updates as long as that works."""
    calls = []

    def tell(row: Any) -> None:
        calls.append(row["update"])
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    Trainer(make_config(core="none"), tmp_path / "run").run(tell)
    assert calls == [1]
    assert load_checkpoint(tmp_path / "run").updates > 10


@pytest.mark.long
def test_reader_that_goes_away_does_not_end_training(tmp_path: Path) -> None:
    """As in 'rims train ... 2>&1 | head -1'."""
    read, write = os.pipe()
    os.close(read)
    arguments = ("train", "--env", ENV, "--core", "none", *TOY, "--total-steps", "300")
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments, "--run-dir", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=write,
        timeout=120,
        check=False,
    )
    os.close(write)
    assert done.returncode == 0
    assert load_checkpoint(tmp_path / "run").env_steps >= 300


# Other writers ----------------------------------------------------------------------------------


def test_second_writer_is_told_who_writes_and_a_dead_one_holds_nothing(
    tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = ("--total-steps", "100000000", "--run-dir", "run")
    with process("train", "--env", ENV, *TOY, *steps, folder=tmp_path) as running:
        wait_for_rows(running, tmp_path / "run" / PROGRESS_NAME)
        for arguments in ((*TRAIN, *TOY, "--run-dir", "run"), ("resume", "run")):
            line = assert_one_line(rims(*arguments))
            assert f"is in use by process {running.pid} on {os.uname().nodename}" in line
        running.kill()
        running.communicate(timeout=60)
    checkpoint = read_run(tmp_path / "run").checkpoint
    total = 300 + (checkpoint.env_steps if checkpoint else 0)
    assert rims("resume", "run", "--total-steps", str(total)).code == 0


def test_what_ends_a_run_is_told_in_one_line() -> None:
    for error in (CannotSave("x", OSError(28, "No space left")), TrainingError("a", 3)):
        assert isinstance(error, RunStopped)
        assert "\n" not in str(error)
