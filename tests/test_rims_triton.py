from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from rims import RIM_GRUCell, RIM_LSTMCell
from rims.scan.problem import Weights
from rims.scan.triton.recurrence import why_not
from selection import short
from triton_cases import NAMES, run

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def _script(name: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    """The lines of JSON that a script beside this file prints."""
    here = Path(__file__).parent
    paths = [str(here.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(here / name), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


QUICK = ["lstm reads state"]


@needs_triton
@pytest.mark.parametrize(
    "names", short([QUICK, [name for name in NAMES if name not in QUICK]], 0), ids=["quick", "rest"]
)
def test_kernels_interpreted_agree_with_autograd(names: list[str]) -> None:
    """In one process, in which Triton interprets its kernels."""
    lines = _script("triton_cases.py", *names, TRITON_INTERPRET="1")
    assert {line["name"]: line["error"] for line in lines} == dict.fromkeys(names)


@needs_triton
@needs_cuda
@pytest.mark.parametrize("name", NAMES)
def test_kernels_on_cuda_agree_with_autograd(name: str) -> None:
    run(name, "cuda")


@needs_triton
@pytest.mark.skipif(sys.platform != "linux", reason="triton brings its assembler for linux only")
@pytest.mark.long
@pytest.mark.parametrize(("capability", "layer"), [("80", "lstm float32"), ("90", "gru bfloat16")])
def test_kernels_compile_for_an_absent_device(capability: str, layer: str, tmp_path: Path) -> None:
    """As much as can be said of a GPU without one: the compiler takes the kernels."""
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    lines = _script("triton_compile.py", capability, layer, **environment)
    assert [line["kernel"] for line in lines] == ["forward_kernel", "backward_kernel"]
    for line in lines:
        assert line["cubin"] > 0
        # What a program may have on every device since compute capability 8.0.
        assert line["shared"] <= 99 * 1024


def test_why_not_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    w = Weights.of(RIM_LSTMCell(3, 8, 2, 1))
    assert why_not(torch.device("cuda"), torch.float32, w) == "triton is not installed"


@pytest.mark.long
def test_rims_does_not_import_triton() -> None:
    code = "import sys, rims, rims.scan.triton.recurrence; assert 'triton' not in sys.modules"
    # Torch may; then there is nothing to see.
    torch_alone = "import sys, torch; sys.exit('triton' in sys.modules)"
    if subprocess.run([sys.executable, "-c", torch_alone]).returncode:
        pytest.skip("torch itself imports triton")
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_triton
@pytest.mark.parametrize(
    ("sizes", "options", "reason"),
    [
        ((3, 65, 65, 1), {}, "more than 64 mechanisms"),
        ((3, 2 * 1025, 2, 1), {}, "mechanisms of more than 1024 features"),
        (
            (3, 8, 2, 1),
            {"comm_key_size": 33},
            "communication keys or values of more than 128 features",
        ),
        ((3, 8, 2, 1), {}, None),
    ],
)
def test_why_not_names_what_is_too_large(
    sizes: tuple[int, int, int, int],
    options: dict[str, Any],
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    w = Weights.of(RIM_GRUCell(*sizes, device="meta", **options))
    assert why_not(CPU, torch.float32, w) == reason


@needs_triton
def test_why_not_names_type_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    w = Weights.of(RIM_LSTMCell(3, 8, 2, 1))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert why_not(CPU, torch.float32, w) == "triton does not run on cpu"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert why_not(CPU, torch.complex64, w) == "no triton kernel for torch.complex64"
