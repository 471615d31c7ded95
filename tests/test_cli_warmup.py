"""``rims warmup``: every kernel is compiled and judged before somebody waits for it."""

from __future__ import annotations

import importlib
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import Rims

pytest.importorskip("numba", reason="kernels need numba")

ROOT = Path(__file__).resolve().parents[1]


def test_every_kernel_is_named_with_its_time(rims: Rims) -> None:
    from rims.native.store import folder

    result = rims("warmup", "--double")
    assert result.code == 0
    lines = result.out.splitlines()
    of = ("RIM layers", "NFM")
    named = [
        f"{layers}, {part}float{bits}"
        for bits in (32, 64)
        for layers in of
        for part in ("", "gradients, ")
    ]
    assert [line.partition(" ... ")[0] for line in lines[: len(named)]] == named
    assert all(line.endswith(" s") for line in lines[:-1])
    assert lines[-1] == f"Kept in {folder()}."
    for package in ("scan", "nfm"):
        for name in ("forward", "back"):
            assert list(folder().glob(f"{package}-{name}-64-*.kernel"))


def test_a_kernel_with_wrong_numbers_is_an_error(
    rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: Any = importlib.import_module("rims.scan.paths")
    monkeypatch.setattr(paths, "native_fault", lambda name, _: f"{name} is wrong")
    result = rims("warmup")
    assert result.code == 1
    assert "RIM layers, float32 ... wrong numbers" in result.out
    assert result.err == "Error: forward is wrong.\n"


def test_kernels_that_cannot_be_kept_are_an_error(
    rims: Rims, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernels of this process are there; none is in the folder that is named now."""
    monkeypatch.setenv("RIMS_CACHE_DIR", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    result = rims("warmup")
    assert result.code == 1
    assert "kernels cannot be kept in" in result.err


@pytest.mark.parametrize("at_a_terminal", [True, False])
def test_a_terminal_is_told_why_a_first_call_takes_long(at_a_terminal: bool) -> None:
    """What compiling costs is left out: only the notice is tried."""
    code = "from rims.native import build; [build._say_why_it_takes_long() for _ in range(2)]"
    ours, theirs = pty.openpty() if at_a_terminal else os.pipe()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, cwd=ROOT)
    os.close(theirs)
    try:
        said = os.read(ours, 10_000).decode()
    except OSError:  # a terminal without writers
        said = ""
    os.close(ours)
    assert said.count("rims: compiling kernels (once per machine") == at_a_terminal
