"""Processes that share kernels on disk compute right numbers, whatever ran before them."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

from history_cases import KINDS, difference, start
from selection import short
from shared import made_once

pytest.importorskip("numba", reason="kernels need numba")

build = pytest.importorskip("rims.native.build")
from rims.native import store  # noqa: E402

#: Sums of some hundred terms in single precision.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A copy of the kernels that processes of some kinds left in an empty folder."""

    def copied(*kinds: str) -> Path:
        *before, last = kinds

        def make(folder: Path) -> None:
            if before:
                shutil.copytree(copied(*before), folder, dirs_exist_ok=True)
            check(last, folder)

        left = made_once(tmp_path_factory, "kernels-" + "-".join(kinds), make)
        copy = tmp_path_factory.mktemp("copy") / "kernels"
        shutil.copytree(left, copy)
        return copy

    return copied


def check(kind: str, cache: Path | None, **variables: str) -> None:
    """Assert that a process computes right numbers and has nothing to say."""
    off, warned = difference(kind, cache, **variables)
    assert off < ROUNDING
    assert warned == ""


#: The first lines of the README in one process, training in the next one.
ORDINARY = ("forward", "training")


def test_processes_that_share_the_kernels_of_all_tests() -> None:
    for kind in ORDINARY:
        check(kind, None)


@pytest.mark.long
def test_training_after_a_forward_pass(after: Callable[..., Path]) -> None:
    cache = after(*ORDINARY)
    for kind in ("training", "forward"):
        check(kind, cache)


@pytest.mark.long
@pytest.mark.parametrize(("first", "second"), [*permutations(KINDS, 2)])
def test_pairs(first: str, second: str, after: Callable[..., Path]) -> None:
    check(second, after(first))


#: What a process of each kind may add to: its first one compiles.
ORDER = ("forward", "training", "jax", "double", "nfm", "gru")


@pytest.mark.long
def test_every_kind_after_every_other(after: Callable[..., Path]) -> None:
    """Each compiles what it needs beside what is there; then each finds what the others left.

    ``test_pairs`` has each compile after each.
    """
    assert sorted(ORDER) == sorted(KINDS)
    cache = after(*ORDINARY)
    for kind in (*ORDER[2:], *ORDER[::-1]):
        check(kind, cache)


@pytest.mark.long
def test_two_processes_compiling_at_once(tmp_path: Path) -> None:
    processes = [start("forward", tmp_path) for _ in range(2)]
    for process in processes:
        printed, warned = process.communicate(timeout=300)
        assert float(printed) < ROUNDING
        assert warned == ""
    check("forward", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.3, 1])
def test_a_compilation_that_is_killed(seconds: float, after: Callable[..., Path]) -> None:
    """Of the gradient, so many seconds after it has begun: it takes longer on any machine."""
    cache = after("forward")
    known = set(cache.iterdir())
    process = start("training", cache)
    while set(cache.iterdir()) == known:  # until it has made its lock
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    assert not list(cache.glob("*back*.kernel"))
    check("training", cache)


@pytest.mark.long
@pytest.mark.skipif("+avx2" not in build._made_by(), reason="processors of the family x86")
def test_processors_that_share_a_folder(tmp_path: Path) -> None:
    """Kernels of vectors of 16 and of 32 bytes, as two machines would leave them there."""
    older = {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "+sse4.2"}
    newer = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    for processor in (newer, older, newer, {}, older):
        check("forward", tmp_path, **processor)
    assert len(list(tmp_path.glob("scan-forward*"))) == 3


def _only(cache: Path, part: str) -> Path:
    (file,) = cache.glob(f"*{part}*")
    return file


@pytest.mark.long
def test_damaged_files_are_compiled_again(after: Callable[..., Path]) -> None:
    cache = after(*ORDINARY)
    file = _only(cache, "scan-forward")
    file.write_bytes(file.read_bytes()[:5000])
    off, warned = difference("forward", cache)
    assert off < ROUNDING
    assert warned.count(f"{file}: this kernel file is damaged") == 1
    check("forward", cache)


# --- machine code that computes something else


#: A product of two vector registers: VEX of two bytes, no or one prefix, opcode, registers.
_PRODUCT = re.compile(
    b"(\xc5[" + b"".join(b"\\x%02x" % n for n in range(256) if n & 3 < 2) + b"])\x59([\xc0-\xff])"
)


def _with_sums_for_products(file: Path) -> None:
    """Change multiplications into additions, and seal the file again."""
    content = file.read_bytes()
    head = store._after_head()
    changed = _PRODUCT.sub(lambda found: found[1] + b"\x58" + found[2], content[head:])
    assert changed != content[head:]
    key = _key_of(file)
    assert content[:head] == store._MARK + store._hash(key, content[head:])
    file.write_bytes(store._MARK + store._hash(key, changed) + changed)


def _key_of(file: Path) -> str:
    """The key by which this installation finds a file."""
    name, _, _ = file.name.rpartition("-")
    folder = {"scan": "rims/scan/native", "nfm": "nfm/native"}[name.split("-")[0]]
    root = Path(build.__file__).resolve().parents[2]
    return str(build._key(name, build._ENTRY, root / folder))


@pytest.mark.parametrize(
    ("kind", "history"),
    [("training", ORDINARY), pytest.param("nfm", ("nfm",), marks=pytest.mark.long)],
)
@pytest.mark.parametrize("part", short(["forward-32", "back-32"], 1))
@pytest.mark.skipif("+avx" not in build._made_by(), reason="changes instructions of AVX")
@pytest.mark.long
def test_wrong_machine_code_is_noticed_and_not_used(
    kind: str, history: tuple[str, ...], part: str, after: Callable[..., Path]
) -> None:
    cache = after(*history)
    file = _only(cache, part)
    _with_sums_for_products(file)
    off, warned = difference(kind, cache)
    assert off < ROUNDING
    assert warned.count("float32 computes wrong numbers") == 1
    assert f"Delete {file}" in warned
    if part == "forward-32":  # what is compiled sooner
        file.unlink()
        check(kind, cache)
