"""Files that somebody named are looked at before they are read, and read up to a limit."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.disk.named_files import Bounded, read_file, read_text


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (_pipe, "it is a pipe, not a file"),
    "device": (_device, "it is a device, not a file"),
    "socket": (_socket, "it is a socket, not a file"),
    "folder": (Path.mkdir, "it is a folder, not a file"),
    "sparse": (_sparse, "it has 1,099,511,627,776 bytes, more than 1,048,576"),
    "loop": (lambda path: path.symlink_to(path.name), "symbolic link"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket has 100 characters at most
    make, told = OTHERS[kind]
    make(Path("x"))
    with pytest.raises(OSError, match=told):
        read_file("x")


def test_file_is_read_also_through_a_link_and_up_to_the_last_byte(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\r\nb\r")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link", most=5) == b"a\r\nb\r"
    assert read_text(tmp_path / "link") == (tmp_path / "file").read_text() == "a\nb\n"
    with pytest.raises(OSError, match="it has 5 bytes, more than 4"):
        read_file(tmp_path / "link", most=4)


def test_file_that_tells_no_size_is_read_up_to_the_limit() -> None:
    path = Path("/proc/self/status")
    if not path.is_file():
        pytest.skip("there is no /proc")
    assert path.stat().st_size == 0
    assert read_file(path).startswith(b"Name:")
    with pytest.raises(OSError, match="it has more than 9 bytes"):
        read_file(path, most=9)


def test_bounded_stream_reads_no_more_than_one_byte_beyond() -> None:
    inner = io.BytesIO(bytes(100))
    stream = Bounded(inner, 10)
    assert len(stream.read(4)) == 4
    assert len(stream.read(6)) == 6
    with pytest.raises(OSError, match="more than 10 bytes"):
        stream.read()
    assert inner.tell() == 11
