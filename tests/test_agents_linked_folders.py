"""A run folder that somebody else made leads nowhere: nothing outside it is changed or removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.judging.compare import plan
from agents.learning.checkpoint import load_checkpoint
from command_line import TOY, TRAIN, Rims, assert_one_line, snapshot
from compare_cases import make_config
from experiment_cases import line
from experiments.fit import fit
from lab.disk.folder import read_progress, require_plain_run
from lab.disk.lock import has_writer
from lab.disk.plain_files import NotPlain, read_plain
from lab.disk.store import CheckpointStore

MORE = ("--total-steps", "600")


@pytest.fixture
def run(toy_run: Path, tmp_path: Path, rims: Rims) -> Path:
    """A run that was trained, and beside it a folder of the user's own."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "00000001-0123abcd.pt").write_bytes(b"precious")
    (tmp_path / "mine" / "notes.txt").write_bytes(b"precious")
    return Path(shutil.copytree(toy_run, tmp_path / "here" / "run"))


def link(name: str) -> Callable[[Path, Path], None]:
    def change(run: Path, mine: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(mine / "notes.txt")

    return change


def pipe(name: str) -> Callable[[Path, Path], None]:
    def change(run: Path, _: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return change


def folder(name: str) -> Callable[[Path, Path], None]:
    def change(run: Path, _: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return change


def link_checkpoints(run: Path, mine: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.rename(mine / path.name)
    (run / "checkpoints").rmdir()
    (run / "checkpoints").symlink_to(mine)


def link_manifest(run: Path, mine: Path) -> None:
    *_, path = sorted((run / "checkpoints").glob("*.json"))
    path.rename(mine / path.name)
    path.symlink_to(mine / path.name)


def link_tensors(run: Path, mine: Path) -> None:
    path = load_path(run)
    path.rename(mine / path.name)
    path.symlink_to(mine / path.name)


def load_path(run: Path) -> Path:
    return CheckpointStore(run, "agent").load().path


def link_lock_by_name(run: Path, mine: Path) -> None:
    (run / ".lock").unlink()
    (run / ".lock").hardlink_to(mine / "notes.txt")


CHANGES = {
    **{f"{name} is a link": link(name) for name in (".lock", ".lock-holder", "config.toml")},
    **{f"{name} is a link": link(name) for name in ("progress.csv", "failure.txt", ".writable")},
    **{f"{name} is a pipe": pipe(name) for name in (".lock", "config.toml", "progress.csv")},
    **{f"{name} is a folder": folder(name) for name in ("failure.txt", "progress.csv")},
    "events are a link": link("events.out.tfevents.1.x"),
    "checkpoints are a link": link_checkpoints,
    "a manifest is a link": link_manifest,
    "tensors are a link": link_tensors,
    "the lock is another file's name": link_lock_by_name,
}


@pytest.mark.parametrize("name", CHANGES)
def test_nothing_in_a_run_folder_is_followed(
    run: Path, rims: Rims, tmp_path: Path, name: str
) -> None:
    CHANGES[name](run, tmp_path / "mine")
    before = snapshot(tmp_path)
    assert str(Path("run")) in assert_one_line(rims("resume", "run", *MORE))
    assert snapshot(tmp_path) == before


def test_run_as_it_was_made_goes_on(run: Path, rims: Rims) -> None:
    """The control of the test above."""
    assert rims("resume", "run", *MORE).code == 0
    assert load_checkpoint(run).env_steps >= 600


def test_a_folder_that_the_user_linked_on_purpose_is_used(run: Path, rims: Rims) -> None:
    Path("link").symlink_to(run)
    assert rims("resume", "link", *MORE).code == 0
    assert load_checkpoint(run).env_steps >= 600


def test_table_with_another_name_is_left_as_it_was_there(run: Path, rims: Rims) -> None:
    """As 'cp -al' and backups make them."""
    Path("backup.csv").hardlink_to(run / "progress.csv")
    before = Path("backup.csv").read_bytes()
    assert rims("resume", "run", *MORE).code == 0
    assert Path("backup.csv").read_bytes() == before
    assert len(read_progress(run)["update"]) > before.count(b"\n") - 1


@pytest.mark.parametrize("name", ["00000009-0123abcd.pt", "model.pt", "notes.txt", "00000009.json"])
def test_only_files_of_our_own_form_are_removed(run: Path, rims: Rims, name: str) -> None:
    path = run / "checkpoints" / name
    path.symlink_to(run / "config.toml") if name.endswith("json") else path.touch()
    if name.endswith(".json"):
        assert_one_line(rims("resume", "run", *MORE))
        assert path.is_symlink()
        return
    assert rims("resume", "run", *MORE).code == 0
    assert path.exists() == (name != "00000009-0123abcd.pt")


def test_interrupted_first_update_removes_only_what_the_run_made(tmp_path: Path) -> None:
    from agents.learning.train import Trainer

    trainer = Trainer(make_config(), tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "folder").mkdir()
    vars(Trainer)["_remove_traces"](trainer)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["folder", "notes.txt"]


def test_run_of_a_comparison_is_no_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "none-seed0").symlink_to(run)
    for as_found in (True, False):
        with pytest.raises(ValueError, match=r"none-seed0' is a symbolic link") as caught:
            plan(make_config(), ["none"], [0], tmp_path / "root", as_found=as_found)
        assert "\n" not in str(caught.value)


def test_new_run_does_not_begin_where_a_link_is(rims: Rims, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    Path("run").mkdir()
    (Path("run") / ".lock-holder").symlink_to(tmp_path / "notes.txt")
    before = snapshot(tmp_path)
    assert "not empty" in assert_one_line(rims(*TRAIN, *TOY, "--run-dir", "run"))
    assert snapshot(tmp_path) == before


def test_experiment_follows_no_link(tmp_path: Path) -> None:
    fit(line(), tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "mine")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "mine")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="is a symbolic link"):
        fit(line(), tmp_path / "run")
    assert snapshot(tmp_path) == before


def test_watching_waits_for_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    assert has_writer(tmp_path) is None


def test_what_is_read_is_a_file_of_a_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_plain(path, 5) == b"12345"
    with pytest.raises(NotPlain, match="5 bytes, more than 4"):
        read_plain(path, 4)
    with pytest.raises(NotPlain, match="a device"):
        read_plain(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "nothing")
    require_plain_run(tmp_path)
