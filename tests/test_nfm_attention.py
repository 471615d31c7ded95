"""Attention over slots: native kernels and PyTorch's views compute what is written plainly."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import nfm
from nfm.attention import MemoryEntry, SlotRead, attend_plainly
from nfm.fast import _is_for_native, attend, attend_by_views

pytest.importorskip("numba", reason="the native kernels need numba")

#: (reader, entries), sizes that divide and do not, larger, smaller and both at once.
SIZES: list[tuple[tuple[int, ...], list[tuple[int, ...]]]] = [
    ((7,), [(7,)]),
    ((100,), [(100,), (50,), (200,), (33,), (1,)]),
    ((64, 64), [(64, 64), (16, 32)]),
    ((32, 32), [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]),
    ((4, 4), [(32, 32), (16, 16), (4, 4), (2, 2)]),
    ((28, 28), [(28, 28), (14, 14), (7, 7)]),
    ((7, 5), [(14, 5), (3, 10), (7, 5), (11, 13)]),
    ((6, 70), [(6, 70), (3, 35), (12, 140)]),
    ((3, 5, 4), [(3, 5, 4), (6, 5, 2), (2, 7, 4)]),
]


class Case(NamedTuple):
    query: Tensor
    memory: list[MemoryEntry]
    options: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.query, *(tensor for entry in self.memory for tensor in entry)]


def make_case(
    size: tuple[int, ...],
    sources: list[tuple[int, ...]],
    *,
    seed: int = 0,
    batch: int = 2,
    num_heads: int = 2,
    key_size: int = 5,
    value_size: int = 3,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(features: int, size: tuple[int, ...]) -> Tensor:
        shape = (batch, num_heads * features, *size)
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    memory = [MemoryEntry(draw(key_size, s), draw(value_size, s)) for s in sources]
    return Case(draw(key_size, size), memory, {"num_heads": num_heads, **options})


def gradients(case: Case, out: SlotRead) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum()
        for part in out
    )
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, case.tensors))


def assert_all_agree(case: Case, tolerance: float = 1e-10) -> None:
    assert _is_for_native(case.query, case.memory)
    plain = attend_plainly(case.query, case.memory, **case.options)
    expected = [*plain, *gradients(case, plain)]
    for function in (attend, attend_by_views):
        out = function(case.query, case.memory, **case.options)
        found = [*out, *gradients(case, out)]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the same numbers


@pytest.mark.parametrize("null_slot", [True, False])
@pytest.mark.parametrize("rescale", ["space_to_depth", "nearest"])
@pytest.mark.parametrize(("size", "sources"), SIZES)
def test_sizes(size: Any, sources: Any, rescale: str, null_slot: bool) -> None:
    assert_all_agree(make_case(size, sources, top_k=3, rescale=rescale, null_slot=null_slot))


# The threshold divides by what the cut leaves, plus 1e-7: rounding may grow by that much.
@pytest.mark.parametrize(("rule", "tolerance"), [("softmax", 1e-10), ("threshold", 1e-7)])
@pytest.mark.parametrize("top_k", [None, 1, 2, 3, 4, 5, 6])
def test_rules(rule: str, tolerance: float, top_k: int | None) -> None:
    case = make_case((6, 9), [(6, 9), (3, 3), (12, 9), (6, 9)], top_k=top_k, topk_rule=rule)
    assert_all_agree(case, tolerance)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_anything(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    length = st.integers(1, {1: 80, 2: 12, 3: 5}[axes])
    size = st.tuples(*[length] * axes)
    features = st.integers(1, 9)
    case = make_case(
        data.draw(size),
        data.draw(st.lists(size, min_size=1, max_size=4)),
        seed=data.draw(st.integers(0, 1000)),
        batch=data.draw(st.integers(1, 3)),
        num_heads=data.draw(st.integers(1, 3)),
        key_size=data.draw(features),
        value_size=data.draw(features),
        top_k=data.draw(st.one_of(st.none(), st.integers(1, 6))),
        rescale=data.draw(st.sampled_from(["space_to_depth", "nearest"])),
        null_slot=data.draw(st.booleans()),
    )
    assert_all_agree(case)


@pytest.mark.parametrize(("size", "sources"), SIZES)
def test_single_precision(size: Any, sources: Any) -> None:
    case = make_case(size, sources, top_k=3, dtype=torch.float32)
    double = Case(
        case.query.double(), [MemoryEntry(*(t.double() for t in e)) for e in case.memory], {}
    )
    # A near-tie may fall the other way after rounding; nothing here is one.
    found = attend(case.query, case.memory, **case.options)
    expected = attend_plainly(double.query, double.memory, **case.options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sources", [[(6, 6)] * 4, [(6, 6), (3, 3), (6, 6), (3, 3)]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_are_cut_in_favour_of_the_first_slots(sources: Any, dtype: torch.dtype) -> None:
    case = make_case((6, 6), sources, top_k=2, dtype=dtype)
    twice = [case.memory[0], case.memory[0], case.memory[0], case.memory[1]]
    weights = attend(case.query, twice, **case.options).weights
    assert torch.equal((weights > 0).sum(2), torch.full_like(weights[:, :, 0], 2).long())
    assert torch.all(weights[:, :, 2] == 0)  # of three equal slots, never the third
    silent = attend(torch.zeros_like(case.query), case.memory, **case.options).weights
    expected = torch.tensor([0.5, 0.5, 0, 0, 0], dtype=dtype)[:, None, None]
    assert torch.equal(silent, expected.expand_as(silent))


def test_gradients_at_ties_go_to_the_slots_that_were_read() -> None:
    case = make_case((5, 4), [(5, 4)] * 3, top_k=2)
    again = Case(case.query, [case.memory[0], case.memory[0], case.memory[1]], case.options)
    plain = attend_plainly(again.query, again.memory, **again.options)
    expected = torch.autograd.grad(plain.read.square().sum(), [again.query, *again.memory[0]])
    out = attend(again.query, again.memory, **again.options)
    found = torch.autograd.grad(out.read.square().sum(), [again.query, *again.memory[0]])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_score_that_is_not_a_number_shows() -> None:
    case = make_case((4, 4), [(4, 4), (2, 2)], top_k=1)
    with torch.no_grad():
        case.query[0, 0, 1, 2] = torch.nan
    out, plain = (f(case.query, case.memory, **case.options) for f in (attend, attend_plainly))
    assert torch.equal(out.weights.isnan(), plain.weights.isnan())
    assert torch.equal(out.read.isnan(), plain.read.isnan())


def test_one_slot_takes_everything() -> None:
    case = make_case((5,), [(5,)], null_slot=False)
    out = attend(case.query, case.memory, **case.options)
    assert torch.equal(out.read, case.memory[0].value)


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(batch: int) -> None:
    case = make_case((4, 4), [(4, 4), (2, 2)], batch=batch, top_k=2)
    out = attend(case.query, case.memory, **case.options)
    assert out.read.shape == (batch, 6, 4, 4)
    assert out.weights.shape == (batch, 2, 3, 4, 4)
    if batch:
        assert_all_agree(case)


def test_memory_layout_does_not_matter() -> None:
    case = make_case((6, 5), [(6, 5), (3, 5)], top_k=2)
    turned = Case(
        case.query.mT.contiguous().mT,
        [MemoryEntry(*(t.to(memory_format=torch.channels_last) for t in e)) for e in case.memory],
        case.options,
    )
    out, same = (attend(c.query, c.memory, **c.options) for c in (case, turned))
    assert torch.equal(out.read, same.read)
    for a, b in zip(gradients(case, out), gradients(case, same), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    case = make_case(
        (32, 32), [(32, 32), (16, 16), (64, 64), (5, 7)], batch=3, top_k=3, dtype=dtype
    )
    found = []
    for count in (1, 2):
        with threads(count):
            out = attend(case.query, case.memory, **case.options)
            found.append([*out, *gradients(case, out)])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


# --- derivatives


@pytest.mark.parametrize("rule", ["softmax", "threshold"])
def test_gradients_are_those_of_finite_differences(rule: str) -> None:
    case = make_case((2, 3), [(2, 3), (4, 3), (1, 1)], batch=1, top_k=2, topk_rule=rule)
    memory = case.tensors[1:]

    def run(query: Tensor, *memory: Tensor) -> SlotRead:
        entries = [MemoryEntry(*pair) for pair in zip(memory[::2], memory[1::2], strict=True)]
        return attend(query, entries, **case.options)

    assert torch.autograd.gradcheck(run, (case.query, *memory))


def test_second_derivatives() -> None:
    case = make_case((2, 2), [(2, 2), (1, 2)], batch=1, key_size=2, value_size=2, top_k=2)

    def run(*tensors: Tensor) -> Tensor:
        entries = [MemoryEntry(tensors[1], tensors[2]), MemoryEntry(tensors[3], tensors[4])]
        return attend(tensors[0], entries, **case.options).read

    assert torch.autograd.gradgradcheck(run, tuple(case.tensors))


@pytest.mark.parametrize("part", [0, 1])
def test_gradients_of_one_result_alone(part: int) -> None:
    case = make_case((4, 4), [(4, 4), (2, 2)], top_k=2)
    outs = [f(case.query, case.memory, **case.options) for f in (attend, attend_plainly)]
    found, expected = (
        torch.autograd.grad(out[part].square().sum(), case.tensors, allow_unused=True)
        for out in outs
    )
    for a, b in zip(found, expected, strict=True):
        # what the result does not depend on has no gradient or one of zeros
        a, b = (torch.zeros(()) if t is None else t for t in (a, b))
        torch.testing.assert_close(a.sum(), b.sum().to(a), rtol=1e-10, atol=1e-10)


def test_only_some_arguments_need_a_gradient() -> None:
    case = make_case((4, 4), [(4, 4), (2, 2)], top_k=2)
    entry = MemoryEntry(*(t.detach() for t in case.memory[0]))
    out = attend(case.query.detach(), [entry, case.memory[1]], **case.options)
    out.read.sum().backward()  # type: ignore[no-untyped-call]
    assert case.memory[1].key.grad is not None
    assert case.query.grad is None
    assert not attend(case.query.detach(), [entry], **case.options).read.requires_grad


def test_one_tensor_in_several_places() -> None:
    case = make_case((4, 4), [(4, 4)], key_size=3, top_k=1)
    key = case.memory[0].key
    found = []
    for function in (attend, attend_plainly):
        out = function(key, [MemoryEntry(key, key)], **case.options)
        found.append(torch.autograd.grad(out.read.square().sum(), key)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_gradients_of_many_outputs_at_once() -> None:
    case = make_case((3,), [(3,), (3,)], batch=1, num_heads=1, top_k=2)
    out = attend(case.query, case.memory, **case.options).read.flatten()
    rows = torch.eye(len(out), dtype=out.dtype)
    together = torch.autograd.grad(out, case.query, rows, is_grads_batched=True, retain_graph=True)[
        0
    ]
    apart = [torch.autograd.grad(out, case.query, row, retain_graph=True)[0] for row in rows]
    torch.testing.assert_close(together, torch.stack(apart), rtol=1e-10, atol=1e-10)


# --- the ways of PyTorch


def test_what_is_not_for_the_kernels() -> None:
    case = make_case((4, 4), [(4, 4)], top_k=1)

    def asked(query: Tensor) -> bool:
        return _is_for_native(query, case.memory)

    assert asked(case.query)
    assert not asked(case.query.float())
    assert not asked(case.query.to("meta"))
    assert not _is_for_native(case.query.bfloat16(), [])
    found: list[bool] = []

    def note(query: Tensor) -> Tensor:
        found.append(asked(query))
        return query

    torch.vmap(note)(case.query[None])
    assert found == [False]


def test_vmap_equals_a_loop() -> None:
    case = make_case((4, 4), [(4, 4), (2, 2)], top_k=2)
    queries = torch.randn(3, *case.query.shape, dtype=torch.float64)

    def run(query: Tensor) -> Tensor:
        return attend(query, case.memory, **case.options).read

    together = torch.vmap(run)(queries)
    torch.testing.assert_close(together, torch.stack([run(q) for q in queries]))


def test_a_compiled_attention_equals_the_eager_one() -> None:
    case = make_case((4, 4), [(4, 4), (2, 2), (8, 8)], top_k=2)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    out, same = (f(case.query, case.memory, **case.options) for f in (attend, compiled))
    for a, b in zip([*out, *gradients(case, out)], [*same, *gradients(case, same)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_autocast_trains() -> None:
    module = nfm.NFM(4, key_size=3, value_size=3, num_heads=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = module(torch.randn(2, 4, 6, 6))
    output.sum().backward()
    assert module.gamma.grad is not None


def test_checkpoint_copies_and_threads() -> None:
    torch.manual_seed(0)
    module = nfm.NFM(4, key_size=3, value_size=3, num_heads=2, batch_norm=False)
    torch.nn.init.ones_(module.gamma)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    module(x)[0].sum().backward()
    assert x.grad is not None
    expected = x.grad.clone()
    found: list[Tensor] = []

    def work(use: torch.nn.Module) -> None:
        own = x.detach().clone().requires_grad_()
        for _ in range(20):
            own.grad = None
            checkpoint(lambda y: use(y)[0], own, use_reentrant=False).sum().backward()
        assert own.grad is not None
        found.append(own.grad)

    workers = [threading.Thread(target=work, args=(copy.deepcopy(module),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3
    for grad in found:
        torch.testing.assert_close(grad, expected)


def test_numbers_that_are_negated_when_they_are_read() -> None:
    """As of ``z.conj().imag``: what is in memory has the other sign."""
    given = [torch.randn(2, channels, 3, 3) for channels in (4, 4, 6)]
    grad = torch.randn(2, 6, 3, 3)

    def results(negated: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        query, key, value = (negated(x) for x in leaves)
        read = attend(query, [MemoryEntry(key, value)], num_heads=2).read
        return [read, *torch.autograd.grad(read, leaves, negated(grad))]

    for got, expected in zip(results(torch._neg_view), results(torch.neg), strict=True):
        torch.testing.assert_close(got, expected)
