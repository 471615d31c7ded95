"""Object files on disk: a file is used whole and as written, or not at all."""

from __future__ import annotations

import errno
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forked import SERVER
from rims.native import store

KEY, CODE = "what it is made from", bytes(range(256)) * 9


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the object of KEY belongs, in an empty folder."""
    monkeypatch.setenv("RIMS_CACHE_DIR", str(tmp_path / "kernels"))
    return store.path_of("name", KEY)


def test_an_object_comes_back_in_silence(path: Path) -> None:
    assert store.load(path, KEY) is None
    store.save(path, KEY, CODE)
    assert store.load(path, KEY) == CODE
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _flip_hash(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)


def _longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def _random(file: Path) -> None:
    file.write_bytes(os.urandom(3000))


def _of_another_key(file: Path) -> None:
    other = store.path_of("name", "another key")
    store.save(other, "another key", CODE)
    other.replace(file)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _without_end(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _huge(file: Path) -> None:
    os.truncate(file, 1 << 40)


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _empty,
        _flip,
        _flip_hash,
        _longer,
        _random,
        _of_another_key,
        _pipe,
        _without_end,
        _huge,
    ],
)
def test_a_damaged_file_is_named_and_replaced(path: Path, damage: Callable[[Path], None]) -> None:
    store.save(path, KEY, CODE)
    damage(path)
    with pytest.warns(RuntimeWarning, match=rf"{path}: .*damaged; it is compiled again"):
        assert store.load(path, KEY) is None
    store.save(path, KEY, CODE)
    assert store.load(path, KEY) == CODE


def test_a_file_that_cannot_be_read_is_named(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match=rf"{path}: .*compiled again"):
        assert store.load(path, KEY) is None


def test_without_a_folder_to_write_in_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RIMS_CACHE_DIR", str(tmp_path / "file" / "kernels"))
    path = store.path_of("name", KEY)
    with pytest.warns(RuntimeWarning, match="cannot be kept there.*RIMS_CACHE_DIR"):
        store.save(path, KEY, CODE)


def test_a_full_disk_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        store.save(path, KEY, CODE)
    assert list(path.parent.iterdir()) == []


def test_a_key_has_a_file_of_its_own(path: Path) -> None:
    assert store.path_of("name", KEY + "!") != path
    assert store.path_of("other", KEY) != path


def test_only_old_files_of_this_kind_are_removed(path: Path) -> None:
    path.parent.mkdir(parents=True)
    files = {
        name: path.parent / name
        for name in ("a.kernel", "b.unfinished", "new.kernel", "new.unfinished", "notes.txt")
    }
    for file in files.values():
        file.touch()
        if not file.name.startswith("new"):
            os.utime(file, (time.time() - 400 * 86400,) * 2)
    store.save(path, KEY, CODE)
    left = {file.name for file in path.parent.iterdir()}
    assert left == {path.name, "new.kernel", "new.unfinished", "notes.txt"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RIMS_CACHE_DIR": "/own", "NUMBA_CACHE_DIR": "/numba"}, "/own"),
        ({"NUMBA_CACHE_DIR": "/numba", "XDG_CACHE_HOME": "/cache"}, "/numba/rims"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/rims"),
        ({"HOME": "/home/me"}, "/home/me/.cache/rims"),
    ],
)
@pytest.mark.skipif(os.name != "posix" or os.uname().sysname != "Linux", reason="Linux's folders")
def test_where_kernels_are_kept(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RIMS_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert store.folder() == Path(expected)


def test_what_is_right_makes_no_sound(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.save(path, KEY, CODE)
        store.load(path, KEY)


def _hold(path: Path, seconds: float, begun: Any) -> None:
    with store.compiling(path):
        begun.set()
        time.sleep(seconds)
        store.save(path, KEY, CODE)


def test_of_two_processes_one_compiles(path: Path) -> None:
    begun = SERVER.Event()
    other = SERVER.Process(target=_hold, args=(path, 0.3, begun))
    other.start()
    assert begun.wait(60)
    assert store.load(path, KEY) is None
    with store.compiling(path):
        assert store.load(path, KEY) == CODE
    other.join()


def test_a_process_that_dies_or_takes_long_keeps_nobody_from_compiling(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = SERVER.Event()
    other = SERVER.Process(target=_hold, args=(path, 600, begun))
    other.start()
    assert begun.wait(60)
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    with store.compiling(path):
        pass
    monkeypatch.setattr(store, "_PATIENCE", 60)
    other.kill()
    with store.compiling(path):
        store.save(path, KEY, CODE)
    assert store.load(path, KEY) == CODE
