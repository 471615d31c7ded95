"""Files of checkpoints: damage of any byte is found, a crash harms nothing, no code is run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.disk import manifest, output
from lab.disk import store as checkpoint_store
from lab.disk.manifest import FORMAT_VERSION, sealed
from lab.disk.output import is_unfinished
from lab.disk.store import (
    SET_ASIDE,
    CheckpointStore,
    DamagedCheckpoint,
    has_checkpoint,
)
from lab.disk.versions import other_versions, versions

TENSORS: dict[str, Any] = {
    "weight": torch.arange(500.0),
    "state": {"step": 3, "parts": [torch.ones(2)]},
}
ABOUT = {"config": {"core": "gru"}, "env_steps": 7}


def store_in(run: Path) -> CheckpointStore:
    run.mkdir(exist_ok=True)
    return CheckpointStore(run, "test")


def save(store: CheckpointStore, *numbers: int, score: float | None = None) -> None:
    for number in numbers:
        tensors = {**TENSORS, "number": number, "weight": torch.full((500,), float(number))}
        store.save(number, tensors, {**ABOUT, "number": number}, score=score)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = store_in(tmp_path / "run")
    save(store, 20, 40)
    return store


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def damage_of(store: CheckpointStore, which: str | int = "last") -> DamagedCheckpoint:
    with pytest.raises(DamagedCheckpoint) as caught:
        store.load(which)
    assert "\n" not in str(caught.value)
    assert str(store.folder) in str(caught.value)
    return caught.value


# Saving and loading -----------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    path = store.save(3, TENSORS, ABOUT, score=0.1 + 0.2)
    stored = store.load()
    assert stored.path == path
    assert (stored.number, stored.about, stored.score) == (3, ABOUT, 0.1 + 0.2)
    assert torch.equal(stored.tensors["weight"], TENSORS["weight"])
    assert stored.tensors["state"]["step"] == 3
    assert stored.versions == versions()
    assert stored.versions["torch"] == torch.__version__
    assert torch.load(path, weights_only=True)["state"]["step"] == 3  # as anybody would


def test_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for number, score in ((1, 0.0), (2, 0.9), (3, 0.9), (4, 0.5), (5, None), (6, 0.1)):
        save(store, number, score=score)
        assert len(names(store)) == 2 * len(store.numbers())  # no tensors of dropped ones
    assert store.numbers() == [2, 5, 6]
    assert store.load("best").number == 2  # the first of equals
    assert [store.load(n).number for n in (2, 5, 6)] == [2, 5, 6]


def test_without_scores_the_last_is_the_best(store: CheckpointStore) -> None:
    assert store.load("best").number == 40


def test_number_that_is_not_there_is_refused(store: CheckpointStore) -> None:
    with pytest.raises(ValueError, match=r"has no checkpoint 30; it has 20, 40\."):
        store.load(30)


def test_other_kind_is_refused(store: CheckpointStore) -> None:
    with pytest.raises(ValueError, match="of kind 'test', not 'agent'"):
        CheckpointStore(store.run, "agent").load()


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "new"])
def test_other_format_is_refused_naming_both(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, version: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_store, "FORMAT_VERSION", version)
        save(store, 60)
    with pytest.raises(ValueError, match=f"format {version}; this version reads {FORMAT_VERSION}"):
        store.load()
    save(store, 80)  # is no hindrance
    assert store.load().number == 80


def test_other_versions_are_told_by_name() -> None:
    assert other_versions(versions()) == ""
    before = {**versions(), "torch": "1.0", "jax": "9"}
    del before["numpy"]
    told = other_versions(before).split("; ")
    assert told == [
        "jax 9, now missing",
        f"numpy missing, now {versions()['numpy']}",
        f"torch 1.0, now {torch.__version__}",
    ]


# Damage -----------------------------------------------------------------------------------------


def test_any_byte_that_changes_is_found(store: CheckpointStore) -> None:
    """Every byte of the manifest and every 97th of the tensors, one bit each."""
    tensors = store.load().path
    for path, stride in ((store.manifest(40), 1), (tensors, 97)):
        content = path.read_bytes()
        for place in range(0, len(content), stride):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            assert damage_of(store).whole == 20, (path.name, place)
        path.write_bytes(content)
    assert store.load().number == 40


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("which", ["manifest", "tensors"])
def test_cut_file_is_found(store: CheckpointStore, which: str, share: float) -> None:
    path = store.manifest(40) if which == "manifest" else store.load().path
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    error = damage_of(store)
    assert path.name in str(error)
    assert "The one before it, 20, is whole: remove 00000040.json to use that" in str(error)


@pytest.mark.parametrize("content", [b"hello\n", b"[1]\n", b"{}\n", b"\xff\xfe", b"null"])
def test_manifest_of_something_else_is_found(store: CheckpointStore, content: bytes) -> None:
    store.manifest(40).write_bytes(content)
    damage_of(store)


def test_missing_tensors_are_found(store: CheckpointStore) -> None:
    store.load().path.unlink()
    assert "it is missing" in str(damage_of(store))


def test_cure_that_is_told_works(store: CheckpointStore) -> None:
    store.load().path.write_bytes(b"x")
    found = re.search(r"remove (\S+) to use that", str(damage_of(store)))
    assert found is not None
    (store.folder / found[1]).unlink()
    assert store.load().number == 20
    store.load().path.write_bytes(b"x")
    found = re.search(r"remove the folder (\S+) to begin again", str(damage_of(store)))
    assert found is not None
    shutil.rmtree(found[1])
    assert not has_checkpoint(store.run)


def test_nothing_whole_is_said_to_be_so(store: CheckpointStore) -> None:
    for number in (20, 40):
        store.load(number).path.write_bytes(b"x")
    error = damage_of(store)
    assert error.whole is None
    assert "No earlier one is whole" in str(error)
    assert len(store.set_aside_damaged()) == 2
    assert not has_checkpoint(store.run)


def test_damaged_ones_are_set_aside(store: CheckpointStore) -> None:
    save(store, 60, score=1.0)
    save(store, 80, 100)  # 60, 80, 100 are there
    store.load(100).path.write_bytes(b"x")
    store.manifest(80).write_bytes(b"x")
    assert [p.name for p in store.set_aside_damaged()] == [
        f"00000100.json{SET_ASIDE}",
        f"00000080.json{SET_ASIDE}",
    ]
    assert store.load().number == 60
    assert store.set_aside_damaged() == []
    save(store, 80)
    store.clear_remains()
    assert store.numbers() == [60, 80]
    # What was set aside stays, the tensors too.
    assert len([name for name in names(store) if name.endswith(SET_ASIDE)]) == 4


@pytest.mark.parametrize("why", ["format", "kind", "unreadable"])
def test_what_is_not_damaged_is_never_set_aside(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    before = names(store)
    if why == "format":
        monkeypatch.setattr(manifest, "FORMAT_VERSION", FORMAT_VERSION - 1)
    elif why == "kind":
        store.kind = "other"
    else:

        def fail(*_: object) -> bytes:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(manifest, "read_plain", fail)
    with pytest.raises(ValueError, match=r"."):
        store.set_aside_damaged()
    assert names(store) == before


@pytest.mark.parametrize("lost", ["format", "file", "about"])
def test_sealed_manifest_without_a_field_is_damaged(store: CheckpointStore, lost: str) -> None:
    fields = json.loads(store.manifest(40).read_text())
    del fields["seal"], fields[lost]
    store.manifest(40).write_text(sealed(fields))
    damage_of(store)


def test_deep_manifest_is_damaged(store: CheckpointStore) -> None:
    store.manifest(40).write_text("[" * 10**5)
    damage_of(store)


# Crashes ----------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone: nothing is tidied up."""


@pytest.mark.parametrize("error", [Crash, OSError(28, "No space left on device")], ids=str)
def test_failure_at_every_step_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | OSError
) -> None:
    """Each call that changes the disk fails once; a crash leaves what a killed process leaves."""
    calls = 0
    fail_at = 0

    def failing(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise error
            return function(*arguments, **named)

        return call

    for name in ("open", "replace", "unlink"):
        monkeypatch.setattr(Path, name, failing(getattr(Path, name)))
    monkeypatch.setattr(os, "fsync", failing(os.fsync))

    while True:
        fail_at += 1
        calls = -(10**6)
        run = tmp_path / str(fail_at)
        store = store_in(run)
        save(store, 20, 40)
        calls = 0
        try:
            save(store, 60)
        except (Crash, OSError):
            assert store.load().number in (40, 60)
        else:
            if calls < fail_at:
                break  # there are no more calls to fail at
        calls = -(10**6)
        store.clear_remains()
        assert not any(is_unfinished(path) for path in store.folder.iterdir())
        number = store.load().number
        assert number in (40, 60)
        save(store, 80)
        assert store.numbers() == [number, 80]
        assert len(names(store)) == 4
        shutil.rmtree(run)
    assert fail_at > 8  # it did fail in many places


def test_number_that_is_saved_again_never_harms_the_first(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise Crash
        output.write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_store, "write_bytes", crash)
        with pytest.raises(Crash):
            store.save(40, {"other": 1}, {})
    assert store.load().tensors["number"] == 40
    store.save(40, {"other": 1}, {})
    assert store.load().tensors == {"other": 1}
    assert len(names(store)) == 4


def test_half_written_files_are_no_checkpoint(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.folder.mkdir()
    (store.folder / "00000020.json.123.tmp").write_bytes(b"{")
    (store.folder / "00000020-12345678.pt").write_bytes(b"half")
    assert not has_checkpoint(tmp_path)
    store.clear_remains()
    assert names(store) == []


# Code -------------------------------------------------------------------------------------------


class Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def forge(store: CheckpointStore, content: bytes) -> None:
    """Put other tensors in, with a manifest that fits them, as somebody with intent would."""
    store.load().path.write_bytes(content)
    fields = json.loads(store.manifest(40).read_text())
    del fields["seal"]
    fields |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    store.manifest(40).write_text(sealed(fields))


@pytest.mark.parametrize("how", ["torch", "pickle", "inside"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, store: CheckpointStore, how: str) -> None:
    target = tmp_path / "touched"
    file = tmp_path / "forged.pt"
    if how == "pickle":
        file.write_bytes(pickle.dumps(Touch(target)))
    else:
        torch.save(Touch(target) if how == "torch" else {**TENSORS, "x": Touch(target)}, file)
    forge(store, file.read_bytes())
    assert "not tensors and plain values" in str(damage_of(store))
    assert not target.exists()


def test_forged_tensors_would_be_taken(tmp_path: Path, store: CheckpointStore) -> None:
    """The control of the test above: it is not the checksum that refuses them there."""
    torch.save({"mine": 1}, tmp_path / "forged.pt")
    forge(store, (tmp_path / "forged.pt").read_bytes())
    assert store.load().tensors == {"mine": 1}


def test_code_above_would_run_in_a_careless_reader(tmp_path: Path) -> None:
    """Another control."""
    target = tmp_path / "touched"
    pickle.loads(pickle.dumps(Touch(target)))
    assert target.exists()
