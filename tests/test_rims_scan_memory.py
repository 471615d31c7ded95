"""Memory: kernels, which check no index, stay within it; nothing is read unwritten or kept."""

from __future__ import annotations

import ctypes
import gc
import itertools
import mmap
import sys
import weakref
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from forked import SERVER
from layer_cases import both
from rims.scan import paths, scan_path
from scan_cases import (
    CELLS,
    Case,
    LayerKind,
    all_paths,
    assert_equal,
    assert_near,
    fast_paths,
    make_case,
    needs_numba,
    results,
)
from selection import short

PAGE = mmap.PAGESIZE


def odd_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Sizes around those of vectors and of blocks, with every array there can be."""
    sizes = itertools.product(CELLS, [1, 3, 8, 17], [(1, 1, 1), (7, 17, 9)], [1, 5])
    for kind, unit, (heads, key_size, value_size), batch in sizes:
        torch.manual_seed(unit)
        yield make_case(
            kind,
            (3, unit, 5, 2),
            3,
            batch,
            dtype=dtype,
            resets=batch > 1,
            padding=batch > 1,
            num_comm_heads=heads,
            comm_key_size=key_size,
            comm_value_size=value_size,
            learned_initial_state=True,
            comm_reads="state" if unit == 3 else "candidate",
        )


@all_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_read_before_it_was_written(path: Any, dtype: torch.dtype) -> None:
    for case in odd_cases(dtype):
        expected = results(path, case)
        assert not any(value.isnan().any() for value in expected.values())
        torch.use_deterministic_algorithms(True)  # fills new memory with NaN
        try:
            assert_equal(results(path, case), expected)
        finally:
            torch.use_deterministic_algorithms(False)


@fast_paths
@both
def test_a_loss_that_is_kept_keeps_only_itself(
    path: Any, kind: LayerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with every function of autograd: what it needed is let go once the gradient is known."""
    layer, made = kind(5, 12, 4, 2), []
    recurrence: Any = paths.recurrence(path, torch.zeros(()), "back")
    plain = recurrence.__init__

    def noted(self: Any, *args: Any) -> None:
        plain(self, *args)
        made.append(weakref.ref(self))

    monkeypatch.setattr(recurrence, "__init__", noted)
    with scan_path(path):
        loss = layer(torch.randn(6, 3, 5))[0].square().sum()
    loss.backward()
    gc.collect()
    assert len(made) >= 1
    assert [ref for ref in made if ref() is not None] == []
    assert loss.grad_fn is not None


class Fence:
    """Copies of tensors beside a page that may be neither read nor written."""

    def __init__(self, behind: bool) -> None:
        self.behind = behind
        self.kept: list[Any] = []

    def around(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        size = tensor.numel() * tensor.element_size()
        pages = -(-size // PAGE)
        memory = mmap.mmap(-1, (pages + 1) * PAGE)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        closed = begin + (pages * PAGE if self.behind else 0)
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(closed), PAGE, 0) == 0
        offset = pages * PAGE - size if self.behind else PAGE
        flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
        self.kept.append((memory, flat))
        return flat.view(tensor.shape).copy_(tensor)

    def each(self, parts: Any) -> Any:
        return type(parts)(*map(self.around, parts))


def fenced_recurrence(fence: Fence) -> Any:
    """The native recurrence with a fence around every array it is given."""
    native: Any = paths.recurrence("native", torch.zeros(()), "back")
    module: Any = sys.modules[native.__module__]

    class Fenced(native):  # type: ignore[misc]
        def __init__(self, w: Any, rules: Any, states: Any, flags: Any) -> None:
            super().__init__(fence.each(w), rules, fence.each(states), fence.each(flags))

        def forward(self, first: int, inputs: Any, out: Any) -> None:
            own = fence.each(out)
            super().forward(first, fence.each(inputs), own)
            give_back(own, out)

        def backward(
            self, first: int, inputs: Any, did: Any, grad: Any, carry: Any, out: Any
        ) -> None:
            own_carry, own = fence.each(carry), fence.each(out)
            given = (fence.each(inputs), fence.each(did), fence.around(grad.contiguous()))
            super().backward(first, *given, own_carry, own)
            give_back(own_carry, carry)
            give_back(own, out)

        def _begin_sums(self) -> Any:
            sums = fence.each(super()._begin_sums())
            module._SUMS.set(self._table, [part.data_ptr() for part in sums])
            return sums

    return Fenced


def give_back(own: Any, parts: Any) -> None:
    for source, target in zip(own, parts, strict=True):
        if target is not None:
            target.copy_(source)


def _behind_fences(behind: bool) -> None:
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        for case in odd_cases(dtype):
            expected, fence = results("native", case), Fence(behind)
            fenced = fenced_recurrence(fence)
            with patch.object(paths, "recurrence", return_value=fenced):
                assert_near(results("native", case), expected, 1e-5)
            assert len(fence.kept) > 20


@needs_numba
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
@pytest.mark.parametrize("behind", short([True, False], 0))
def test_kernels_stay_within_their_arrays(behind: bool) -> None:
    # One step too far ends the process, so it is another one.
    child = SERVER.Process(target=_behind_fences, args=(behind,))
    child.start()
    child.join(timeout=120)
    assert child.exitcode == 0
