"""The machinery under the native path: vector functions, threads, processes, compilation."""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import inspect
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal, localcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rims
from layer_cases import both
from rims.native.once import once
from rims.scan import paths, scan_path
from rims.scan.recurrence import Hoisted
from rims.scan.torch.recurrence import TorchRecurrence
from scan_cases import (
    LayerKind,
    assert_equal,
    assert_near,
    both_cells,
    chunks_of,
    double,
    layer_results,
    make_case,
    results,
    threads,
)
from selection import short

numba: Any = pytest.importorskip("numba", reason="the native path needs numba")

build: Any = importlib.import_module("rims.scan.native.build")
compiler: Any = importlib.import_module("rims.native.compiler")
selftest: Any = importlib.import_module("rims.scan.native.selftest")
trust: Any = importlib.import_module("rims.native.trust")
NativeRecurrence: Any = importlib.import_module("rims.scan.native.recurrence").NativeRecurrence
vectors: Any = importlib.import_module("rims.native.vectors")
simd: Any = importlib.import_module("rims.native.simd")
team: Any = importlib.import_module("rims.native.threads")

# --- vector functions


@functools.cache
def over_array(name: str, double: bool) -> Callable[[np.ndarray], np.ndarray]:
    """A function of vectors as one of arrays, whose size is a number of whole vectors."""
    dtype = np.dtype(np.float64 if double else np.float32)
    lanes = vectors.VECTOR_BYTES // dtype.itemsize
    array = numba.types.CPointer(numba.types.float64 if double else numba.types.float32)
    function, load, store = getattr(simd, name), simd.load, simd.store

    def body(source: Any, target: Any, count: int) -> None:
        for i in range(0, count, lanes):
            store(target, i, function(load(source, i)))

    compiled = numba.cfunc(numba.types.void(array, array, numba.types.int64))(body)

    def run(values: np.ndarray) -> np.ndarray:
        padded = np.zeros(-(-len(values) // lanes) * lanes, dtype=dtype)
        padded[: len(values)] = values
        out = np.empty_like(padded)
        pointer = compiled.ctypes.argtypes[0]
        ends = (ctypes.cast(a.ctypes.data, pointer) for a in (padded, out))
        compiled.ctypes(*ends, len(padded))
        return out[: len(values)]

    return run


def arguments(double: bool) -> np.ndarray:
    """Of every size and both signs, and the neighbourhood of multiples of ln 2."""
    source = np.random.default_rng(0)
    largest = 690.0 if double else 80.0
    sizes = np.concatenate([np.logspace(-30, np.log10(largest), 400), source.uniform(0, 20, 400)])
    steps = np.log(2) * np.arange(1, 100) / 2
    sizes = np.concatenate([[0.0], sizes, steps, np.nextafter(steps, 0), np.nextafter(steps, 99)])
    return np.concatenate([sizes, -sizes]).astype(np.float64 if double else np.float32)


def exp(x: Decimal) -> Decimal:
    return x.exp()


def sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def tanh(x: Decimal) -> Decimal:
    return 1 - 2 / (1 + (2 * x).exp())


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("function", "bound"), [(exp, 2), (sigmoid, 3), (tanh, 3)])
def test_vector_functions_are_right_to_some_units_in_the_last_place(
    function: Callable[[Decimal], Decimal], bound: int, double: bool
) -> None:
    # A sum and a quotient follow the power, each rounded by half a unit of its own.
    x = arguments(double)
    got = over_array(function.__name__, double)(x)
    with localcontext() as context:
        context.prec = 80  # 1 - 2 / (1 + e^2x) loses as many digits as x has zeros: up to 30
        exact = [function(Decimal(float(number))) for number in x]
        errors = [abs(Decimal(float(g)) - e) for g, e in zip(got, exact, strict=True)]
    units = np.spacing(np.abs(np.array([float(e) for e in exact], dtype=x.dtype)))
    worst = int(np.argmax([float(e) / u for e, u in zip(errors, units, strict=True)]))
    assert float(errors[worst]) <= bound * units[worst], (x[worst], got[worst], float(exact[worst]))


@pytest.mark.parametrize("double", [True, False])
def test_vector_functions_at_the_ends(double: bool) -> None:
    far = [200.0, 1e4, 1e30, np.inf] if not double else [2000.0, 1e4, 1e300, np.inf]
    ends = np.array([0.0, -0.0, np.nan, *far, *(-x for x in far)])
    zeros, nan, up, down = slice(2), slice(2, 3), slice(3, 7), slice(7, None)
    got = {name: over_array(name, double)(ends) for name in ("exp", "sigmoid", "tanh")}
    # Far below and above, powers stay where they are no trouble: next to nothing, next to all.
    nothing = np.finfo(np.float64 if double else np.float32).eps ** 4
    assert (got["exp"][zeros] == 1).all()
    assert (got["sigmoid"][zeros] == 0.5).all()
    assert (got["tanh"][zeros] == 0).all()
    assert all(np.isnan(values[nan]).all() for values in got.values())
    assert (got["sigmoid"][up] == 1).all()
    assert (got["tanh"][up] == 1).all()
    assert (got["tanh"][down] == -1).all()
    for name in ("exp", "sigmoid"):
        assert (got[name][down] >= 0).all()
        assert (got[name][down] <= nothing).all()
    assert (got["exp"][up] >= 1 / nothing).all()
    # denormal: the smallest numbers there are
    small = np.array([np.finfo(ends.dtype if double else np.float32).smallest_subnormal] * 2)
    small[1] *= -1
    assert (np.abs(over_array("tanh", double)(small)) <= np.abs(small)).all()
    assert (over_array("exp", double)(small) == 1).all()


# --- threads


def test_the_number_of_threads_changes_rounding_only() -> None:
    torch.manual_seed(0)
    case = make_case(rims.RIM_LSTMCell, (5, 17, 4, 2), 4, 33, resets=True)
    expected = results("native", case)
    for count in (2, 3, 7):
        with threads(count):
            assert_near(results("native", case), expected, 1e-12)


def pointer_to(function: Callable[[Any], None]) -> tuple[int, object]:
    """The address of a Python function as machine code, and what keeps it alive."""
    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
    return ctypes.cast(body, ctypes.c_void_p).value or 0, body


@pytest.mark.parametrize("has_team", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_machine_code_runs_once_on_every_thread(
    count: int, has_team: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_team:
        monkeypatch.setattr(team, "_torch_team", lambda: None)
    calls: list[tuple[Any, int]] = []
    # until all are there: one thread cannot run two
    together = threading.Barrier(count)

    def body(table: Any) -> None:
        together.wait(timeout=20)
        calls.append((table, threading.get_ident()))

    address, _keep = pointer_to(body)
    team.run(address, 4096, count)
    assert [table for table, _ in calls] == [4096] * count
    assert len({thread for _, thread in calls}) == count


@both_cells
@pytest.mark.parametrize("count", [2, 3])
def test_a_pool_computes_what_torchs_own_threads_do(
    kind: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    case = make_case(kind, (5, 7, 4, 2), 4, 65, resets=True, padding=True)
    with threads(count):
        expected = results("native", case)
        used = []
        monkeypatch.setattr(team, "_torch_team", lambda: used.append(count))
        # Blocks are the same and every sum is made by one thread: no bit may differ.
        assert_equal(results("native", case), expected)
    assert used


@both
def test_layers_in_two_python_threads_at_once(kind: LayerKind) -> None:
    torch.manual_seed(0)
    layer: Any = kind(5, 28, 4, 2, dtype=torch.float64)
    inputs = double(2, 9, 33, 5)
    expected = [layer_results("reference", layer, input) for input in inputs]
    found: dict[tuple[int, int], Any] = {}

    def work(index: int) -> None:
        for turn in range(5):
            found[index, turn] = layer_results(None, layer, inputs[index])

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert len(found) == 10
    for (index, _), got in found.items():
        assert_near(got, expected[index])


def test_gradients_of_one_thread_by_another() -> None:
    torch.manual_seed(0)
    layer: Any = rims.RIM_LSTM(5, 28, 4, 2, dtype=torch.float64)
    input = double(4, 9, 5)
    expected = layer_results("reference", layer, input)
    with threads(2):  # packed for two threads, gone through by however many the other has
        output, (h, c) = layer(input)
    found: list[Tensor] = []
    ends = [output.square().sum(), h.sum(), c.sum()]

    def work() -> None:
        found.extend(torch.autograd.grad(ends, list(layer.parameters())))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join(timeout=60)
    with scan_path("reference"):
        output, (h, c) = layer(input)
    again = torch.autograd.grad([output.square().sum(), h.sum(), c.sum()], list(layer.parameters()))
    assert len(found) == len(again) == len(expected) - 4
    for got, want in zip(found, again, strict=True):
        torch.testing.assert_close(got, want)


# --- processes


def _child(method: str, seed: int, queue: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    layer: Any = rims.RIM_LSTM(5, 12, 4, 2, dtype=torch.float64)
    input = torch.randn(6, 9, 5, dtype=torch.float64, requires_grad=True)
    output, _ = layer(input)
    (slope,) = torch.autograd.grad(output.square().sum(), input)
    queue.put((method, output.detach().numpy(), slope.numpy()))


@pytest.mark.parametrize("method", short(["spawn", "fork"], 1))
def test_another_process_computes_the_same(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    torch.manual_seed(3)
    layer: Any = rims.RIM_LSTM(5, 12, 4, 2, dtype=torch.float64)
    input = torch.randn(6, 9, 5, dtype=torch.float64, requires_grad=True)
    with threads(1):  # as in the child
        output, _ = layer(input)  # before the fork: kernels are compiled
        (slope,) = torch.autograd.grad(output.square().sum(), input)
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_child, args=(method, 3, queue))
    child.start()
    got = queue.get(timeout=120)
    child.join(timeout=30)
    assert child.exitcode == 0
    np.testing.assert_array_equal(got[1], output.detach().numpy())
    np.testing.assert_array_equal(got[2], slope.numpy())


def _run_in_pool(queue: Any) -> None:
    calls: list[Any] = []
    address, _keep = pointer_to(calls.append)
    team.run(address, 4096, 2)
    queue.put(len(calls))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_pool_of_threads_is_made_anew_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads do not survive a fork, and a pool does not notice."""
    monkeypatch.setattr(team, "_torch_team", lambda: None)
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    address, _keep = pointer_to(lambda table: None)
    team.run(address, 4096, 2)
    child = context.Process(target=_run_in_pool, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=10) == 2
    finally:
        child.kill()
        child.join()


# --- compilation


@pytest.fixture
def compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Forget what is compiled, in this process and on disk; what is compiled from here on."""
    monkeypatch.setenv("RIMS_CACHE_DIR", str(tmp_path / "kernels"))
    for module, name in ((build, "code"), (paths, "native_fault")):
        monkeypatch.setattr(module, name, once(getattr(module, name).__wrapped__))
    made: list[str] = []
    plain = compiler.object_code

    def noted(signature: Any, function: Any) -> bytes | None:
        made.append(function.__name__)
        code: bytes | None = plain(signature, function)
        return code

    monkeypatch.setattr(compiler, "object_code", noted)
    return made


@pytest.mark.long
def test_kernels_are_compiled_once_and_kept_on_disk(
    compiled_anew: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    for _ in range(2):
        results("native", make_case(rims.RIM_GRUCell, (5, 7, 4, 2), 3, 5))
    assert compiled_anew == ["forward", "back"]
    kept = sorted(file.name[:-40] for file in (tmp_path / "kernels").glob("*.kernel"))
    assert kept == ["scan-back-64", "scan-forward-64"]


@pytest.mark.long
def test_where_numba_is_of_another_make_kernels_are_compiled_for_this_process(
    compiled_anew: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(compiler, "POSSIBLE", False)
    case = make_case(rims.RIM_GRUCell, (5, 7, 4, 2), 3, 5)
    with torch.no_grad():  # only the way there: compiling takes seconds
        got, expected = case.run("native").output, case.run("reference").output
    torch.testing.assert_close(got, expected)
    assert compiled_anew == ["forward"]
    assert not (tmp_path / "kernels").exists()


def test_other_errors_of_the_compiler_are_shown(
    compiled_anew: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(compiler, "cfunc", broken)
    case = make_case(rims.RIM_GRUCell, (5, 7, 4, 2), 3, 5)
    with pytest.raises(RuntimeError, match="something else"), torch.no_grad():
        case.run("native")


# --- machine code is compared with PyTorch before it is used


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_self_test_stands_far_from_ties(dtype: torch.dtype) -> None:
    """Rounding must not decide which mechanisms are active, or right code would look wrong."""
    torch.manual_seed(0)
    for case in selftest.cases(dtype):
        expected = case.sequence(TorchRecurrence).active
        noise = (1 + 1e-3 * torch.randn_like(part) for part in case.inputs)
        moved = (part * factor for part, factor in zip(case.inputs, noise, strict=True))
        near = case._replace(inputs=Hoisted(*moved)).sequence(TorchRecurrence)
        assert torch.equal(near.active, expected)


def test_the_self_test_has_every_option_of_the_kernels() -> None:
    every = list(selftest.cases(torch.float32))
    assert [case.rules.input_gate for case in every] == ["null", "straight_through", "none"]
    assert [case.rules.num_heads for case in every] == [2, 1, 0]
    lstm, gru = every[:2]
    assert [case.w.num_gates for case in (lstm, gru)] == [4, 3]
    assert [case.rules.reads_state for case in (lstm, gru)] == [False, True]
    assert [case.w.bias_ih is None for case in (lstm, gru)] == [False, True]
    assert [case.states.fresh_h is None for case in (lstm, gru)] == [True, False]
    for case in (lstm, gru):
        assert case.flags.reset is not None
        assert case.flags.valid is not None
        for flag in case.flags:
            assert flag is not None
            assert 0 < int(flag[1:].sum()) < flag[1:].numel()


#: Files of the kernels in which gradients of weights are summed up, the entry last.
SUMMING = ("rims.scan.native.sums", "rims.scan.native.entry")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_self_test_has_ranges_groups_and_more_rows_than_are_held(count: int) -> None:
    with threads(count):
        longest = 0
        for case in selftest.cases(torch.float32):
            sizes = selftest.NATIVE(*case[1:5])._layout.sizes
            assert sizes["blocks"] == sizes["groups"] == 2
            assert sizes["batch"] < 2 * sizes["block_rows"]  # the second one is smaller
            longest = max(longest, *(last - first for first, last in case.ranges))
        assert 1 < sizes["held_steps"] < longest  # it is the same for all
        assert [len(case.ranges) for case in selftest.cases(torch.float32)] == [2, 2, 1]


@pytest.mark.parametrize("name", ["forward", "back"])
def test_one_wrong_number_of_a_kernel_is_noticed(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second range, or of what is summed over both."""
    assert selftest.fault(name, False) is None
    forward, gradients = NativeRecurrence.forward, NativeRecurrence.gradients

    def wrong_forward(self: Any, first: int, inputs: Any, out: Any) -> None:
        forward(self, first, inputs, out)
        out[0][-1, -1, -1] += 0.1 * (first > 0)

    def wrong_gradients(self: Any) -> Any:
        found = list(gradients(self))
        found[0].view(-1)[-1] += 0.1 * found[0].abs().max()
        return found

    wrong = {"forward": wrong_forward, "gradients": wrong_gradients}
    changed = {"forward": "forward", "back": "gradients"}[name]
    monkeypatch.setattr(NativeRecurrence, changed, wrong[changed])
    with pytest.warns(RuntimeWarning, match="RIM layers, float32 computes wrong"):
        assert selftest.fault(name, False) is not None


@pytest.mark.long
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("not b.so_far", "True"),  # sums of one range alone
        ("add_rows(b, count)", "add_rows(b, count if t == b.first else 0)"),
        ("in range(a.groups)", "in range(1)"),
    ],
)
def test_a_fault_in_one_part_of_a_kernel_is_noticed(
    right: str, wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    codes = {"forward": build.code("forward", False)}
    sources = {name: inspect.getsource(importlib.import_module(name)) for name in SUMMING}
    assert "".join(sources.values()).count(right) == 1
    for name, source in sources.items():
        changed = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, changed)
        exec(source.replace(right, wrong), vars(changed))
    monkeypatch.setattr(build, "entry", changed)
    monkeypatch.setenv("RIMS_CACHE_DIR", str(tmp_path))
    codes["back"] = build.compiled(build._back_entry, False, Path(build.__file__).parent)
    monkeypatch.setattr(build, "code", lambda name, double: codes[name])
    with pytest.warns(RuntimeWarning, match="gradients of RIM layers, float32 computes wrong"):
        assert selftest.fault("back", False) is not None


@pytest.mark.parametrize("name", ["forward", "back"])
@both
def test_a_kernel_with_a_fault_is_not_used(
    name: str, kind: LayerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, input = kind(5, 12, 4, 2).double(), double(6, 3, 5)
    expected = layer_results("torch", layer, input)
    plain = paths.native_fault

    def fault(asked: Any, double: bool) -> str | None:
        return "it is wrong" if asked == name else plain(asked, double)

    def used(self: Any, *_: Any) -> None:
        raise AssertionError("the kernel was used")

    monkeypatch.setattr(paths, "native_fault", fault)
    monkeypatch.setattr(NativeRecurrence, {"back": "backward"}.get(name, name), used)
    assert_near(layer_results(None, layer, input), expected, 1e-9)
    if name == "forward":
        with scan_path("native"), pytest.raises(RuntimeError, match=r"cannot compute.*it is wrong"):
            layer(input)


def test_numbers_that_are_not_numbers_are_wrong() -> None:
    code = SimpleNamespace(path=None)
    ones, bad = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    assert trust.fault(code, [(ones, ones)], "it") is None
    for pair in ((bad, ones), (ones * 2, ones), (None, ones), (ones > 0, ones > 1)):
        with pytest.warns(RuntimeWarning, match="machine code of it computes wrong numbers"):
            assert trust.fault(code, [(ones, ones), pair], "it") is not None


@pytest.mark.long
def test_compiling_in_two_threads_at_once(
    compiled_anew: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[Any] = []
    workers = [
        threading.Thread(target=lambda: codes.append(build.code("forward", True))) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert compiled_anew == ["forward"]
    first, second = codes
    assert first == second
    gc.collect()
    for code in codes:
        monkeypatch.setattr(build, "code", lambda name, double, code=code: code)
        assert selftest.fault("forward", True) is None


def test_kernels_take_constants_only_from_files_that_their_key_knows() -> None:
    """A constant from elsewhere could change without its kernel being compiled again."""
    root = Path(rims.__file__).resolve().parents[1]
    for folder in ("rims/native", "rims/scan/native", "rims/jax/native", "nfm/native"):
        known = ("rims.native", "rims.functional", folder.replace("/", "."))
        for file in sorted((root / folder).glob("*.py")):
            text = file.read_text()
            if not re.search(r"^@(kernel|inlined|intrinsic)", text, re.MULTILINE):
                continue
            taken = re.findall(r"^from ((?:rims|nfm)\S*) import", text, re.MULTILINE)
            assert [name for name in taken if not name.startswith(known)] == [], file


def test_ranges_meet_blocks() -> None:
    torch.manual_seed(0)
    case = make_case(rims.RIM_LSTMCell, (5, 7, 4, 2), 9, 70, resets=True)
    expected = results("native", case)
    with chunks_of(140), threads(2):
        assert_near(results("native", case), expected, 1e-12)


def test_a_first_call_under_autocast_gives_no_alarm() -> None:
    """Then PyTorch rounds, which is no fault of machine code; in a process that has tested none."""
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import torch, rims\n"
        "with torch.autocast('cpu', torch.bfloat16):\n"
        "    output, _ = rims.RIM_LSTM(8, 16, 4, 2)(torch.randn(5, 3, 8))\n"
        "    output.float().sum().backward()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
