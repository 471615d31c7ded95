"""The progress table while it is being written."""

from __future__ import annotations

from pathlib import Path
from threading import Timer

from filelock import FileLock

from lab.disk.folder import PROGRESS_NAME, read_progress
from lab.disk.lock import LOCK_NAME, lock_folder


def test_row_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / PROGRESS_NAME
    path.write_bytes(b"update,env_st")
    assert read_progress(tmp_path) == {}
    path.write_bytes(b"update,env_steps\r\n1,128\r\n2,25")
    assert read_progress(tmp_path) == {"update": [1.0], "env_steps": [128.0]}
    path.write_bytes(b"update,env_steps\r\n1,128\r\n2\r\n")
    assert read_progress(tmp_path) == {"update": [1.0], "env_steps": [128.0]}


def test_whoever_only_looks_for_a_moment_keeps_no_writer_out(tmp_path: Path) -> None:
    looking = FileLock(tmp_path / LOCK_NAME, thread_local=False)
    looking.acquire()
    Timer(0.2, looking.release).start()
    lock_folder(tmp_path).release()
