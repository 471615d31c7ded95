"""The NFM layer and the rescaling of maps: what they compute, and what they refuse."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import nfm
from nfm.attention import attend_plainly
from nfm.rescale import to_slots, window_index, window_size

SMALL: Any = {"key_size": 4, "value_size": 3, "num_heads": 2}


def awake(module: torch.nn.Module) -> torch.nn.Module:
    """With every gamma away from 0, so that what is read matters."""
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(parameter, 0.5)
    return module


# --- rescaling


@given(st.integers(1, 40), st.integers(1, 40))
def test_windows_cover_every_point_and_end_with_the_last(source: int, target: int) -> None:
    window = window_size(source, target)
    index = window_index(source, target, window, torch.device("cpu"))
    assert index.shape == (target, window)
    assert index.min() == 0
    assert index.max() < source
    if source >= target:
        assert set(index.flatten().tolist()) == set(range(source))
    # never a point further away than another window begins
    assert (index[:, 0] == torch.arange(target) * source // target).all()


@given(st.integers(1, 7), st.integers(1, 4))
def test_windows_of_sizes_that_divide_are_space_to_depth(target: int, factor: int) -> None:
    map = torch.randn(2, 3, target * factor, target * factor)
    slots = to_slots(map, (target, target))
    assert slots.shape == (2, factor * factor, 3, target, target)
    for dy in range(factor):
        for dx in range(factor):
            expected = map[:, :, dy::factor, dx::factor]
            assert torch.equal(slots[:, dy * factor + dx], expected)
    by_torch = torch.nn.functional.pixel_unshuffle(map, factor)  # channels outermost
    assert torch.equal(slots.transpose(1, 2).flatten(1, 2), by_torch)


def test_smaller_maps_are_repeated_as_nearest_neighbour_repeats_them() -> None:
    map = torch.randn(1, 2, 3, 5)
    expected = torch.nn.functional.interpolate(map, size=(9, 10), mode="nearest")
    assert torch.equal(to_slots(map, (9, 10))[:, 0], expected)


def test_an_axis_can_be_smaller_while_another_is_larger() -> None:
    map = torch.arange(8.0).view(1, 1, 2, 4)
    slots = to_slots(map, (4, 2))
    assert slots.shape == (1, 2, 1, 4, 2)
    assert slots[0, 0, 0].tolist() == [[0, 2], [0, 2], [4, 6], [4, 6]]
    assert slots[0, 1, 0].tolist() == [[1, 3], [1, 3], [5, 7], [5, 7]]


def test_nearest_takes_the_first_point_of_every_window() -> None:
    map = torch.randn(2, 3, 7, 7)
    assert torch.equal(to_slots(map, (4, 4), rescale="nearest"), to_slots(map, (4, 4))[:, :1])


# --- the layer


def test_a_new_module_changes_nothing_and_its_gamma_learns_first() -> None:
    module = nfm.NFM(5, **SMALL)
    x = torch.randn(2, 5, 6, 6)
    y, memory = module(x)
    assert torch.equal(y, x)
    assert len(memory) == 1
    y.sum().backward()
    assert module.gamma.grad is not None
    assert module.gamma.grad != 0
    query = module.get_parameter("query.weight")
    assert query.grad is not None
    assert not query.grad.any()


def test_output_by_hand_at_one_point() -> None:
    module = awake(nfm.NFM(2, key_size=3, value_size=4, num_heads=1, top_k=1, out_kernel_size=1))
    module.eval().double()
    assert isinstance(module, nfm.NFM)
    x = torch.randn(1, 2, 1, 1, dtype=torch.float64)
    earlier = nfm.MemoryEntry(
        torch.randn(1, 3, 1, 1, dtype=torch.float64), torch.randn(1, 4, 1, 1, dtype=torch.float64)
    )
    y, _ = module(x, (earlier,))
    query, key, value = (f(x).flatten() for f in (module.query, module.key, module.value))
    keys = torch.stack([earlier.key.flatten(), key, torch.zeros(3, dtype=torch.float64)])
    values = torch.stack([earlier.value.flatten(), value, torch.zeros(4, dtype=torch.float64)])
    best = int((keys @ query).argmax())  # with one slot kept its weight is 1
    expected = x + 0.5 * module.out(values[best].view(1, 4, 1, 1))
    torch.testing.assert_close(y, expected)


def test_memory_is_never_changed_in_place() -> None:
    first, second = nfm.NFM(3, **SMALL), nfm.NFM(3, **SMALL)
    x = torch.randn(1, 3, 4, 4)
    _, memory = first(x)
    before = [entry.key.clone() for entry in memory]
    _, longer = second(x, memory)
    assert (len(memory), len(longer)) == (1, 2)
    assert torch.equal(memory[0].key, before[0])
    again, _ = second(x, memory)
    assert torch.equal(again, second(x, memory)[0])


def test_what_is_not_used_is_not_there() -> None:
    names = {name for name, _ in nfm.NFM(3, read=False).named_parameters()}
    assert names == {"key.weight", "key.bias", "value.weight", "value.bias"}
    names = {name.split(".")[0] for name, _ in nfm.NFM(3, write=False).named_parameters()}
    assert names == {"query", "out", "gamma"}
    assert not any("norm" in name for name in nfm.NFM(3, batch_norm=False).state_dict())


def test_flags_of_a_call_leave_reading_or_writing_out() -> None:
    module = awake(nfm.NFM(3, **SMALL))
    x = torch.randn(2, 3, 4, 4)
    y, memory = module(x, read=False)
    assert torch.equal(y, x)
    assert len(memory) == 1
    y, unchanged = module(x, memory, write=False)
    assert not torch.equal(y, x)
    assert unchanged is memory
    y, memory = module(x, write=False)  # nothing was ever written
    assert torch.equal(y, x)
    assert memory == ()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_maps_of_one_to_three_axes(dims: int) -> None:
    first = awake(nfm.NFM(3, spatial_dims=dims, **SMALL))
    second = awake(nfm.NFM(4, spatial_dims=dims, **SMALL))
    x, memory = first(torch.randn(2, 3, *(4,) * dims))
    y, memory = second(torch.randn(2, 4, *(2,) * dims, requires_grad=True), memory)
    assert y.shape == (2, 4, *(2,) * dims)
    (x.sum() + y.square().sum()).backward()
    for name, parameter in [*first.named_parameters(), *second.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def read_of(x: Tensor, memory: nfm.Memory, **options: Any) -> Tensor:
    torch.manual_seed(3)
    module = awake(nfm.NFM(x.shape[1], **{**SMALL, **options})).eval()
    result: Tensor = module(x, memory)[0]
    return result


@pytest.mark.parametrize(
    "change",
    [
        {"top_k": 1},
        {"top_k": None},
        {"topk_rule": "threshold"},
        {"rescale": "nearest"},
        {"null_slot": False},
    ],
    ids=str,
)
def test_options_of_the_attention_change_what_is_read(change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 3)
    memory = tuple(
        nfm.MemoryEntry(torch.randn(2, 8, n, n), torch.randn(2, 6, n, n)) for n in (6, 3, 1)
    )
    assert not torch.equal(
        read_of(x, memory, **{"top_k": 2, **change}), read_of(x, memory, top_k=2)
    )


def test_sizes_are_those_of_the_convolutions() -> None:
    module = nfm.NFM(7, key_size=5, value_size=3, num_heads=2, out_kernel_size=1)
    shapes = {name: tuple(p.shape[:3]) for name, p in module.named_parameters() if p.dim() > 1}
    assert shapes == {
        "key.weight": (10, 7, 1),
        "value.weight": (6, 7, 1),
        "query.weight": (10, 7, 1),
        "out.conv1.weight": (7, 6, 1),
        "out.conv2.weight": (7, 7, 1),
    }


def test_top_k_reads_exactly_k_slots() -> None:
    module = nfm.NFM(4, top_k=3, **SMALL)
    memory = tuple(
        nfm.MemoryEntry(torch.randn(2, 8, n, n), torch.randn(2, 6, n, n)) for n in (8, 4)
    )
    weights = module.attention(torch.randn(2, 8, 4, 4), memory).weights
    assert weights.shape == (2, 2, 4 + 1 + 1, 4, 4)
    assert ((weights > 0).sum(2) == 3).all()


def test_a_head_can_read_nothing() -> None:
    entry = nfm.MemoryEntry(torch.full((1, 8, 2, 2), -30.0), torch.ones(1, 6, 2, 2))
    options: Any = {"num_heads": 2, "top_k": 1}
    query = torch.ones(1, 8, 2, 2)
    assert not attend_plainly(query, [entry], **options).read.any()
    assert attend_plainly(query, [entry], null_slot=False, **options).read.all()


def test_checkpointing_gives_the_same_gradients() -> None:
    module = awake(nfm.NFM(3, **SMALL, batch_norm=False)).double()
    gradients = []
    for recompute in (False, True):
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
        y, _ = checkpoint(module, x, use_reentrant=False) if recompute else module(x)
        y.square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_calls_in_several_threads_do_not_meet() -> None:
    network = awake(nfm.NFMNetwork([torch.nn.Conv2d(1, 4, 3)] * 1, [4], **SMALL)).eval()
    inputs = [torch.randn(2, 1, 8, 8) for _ in range(4)]
    expected = [network(x) for x in inputs]
    found: dict[int, list[Tensor]] = {}

    def work(i: int) -> None:
        found[i] = [network(inputs[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, results in found.items():
        for result in results:
            torch.testing.assert_close(result, expected[i])


def test_compiles_as_one_graph() -> None:
    layers = [torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, stride=2)]
    network = awake(nfm.NFMNetwork(layers, [4, 4], **SMALL))
    twin = copy.deepcopy(network)
    x = torch.randn(2, 2, 9, 9)
    expected, got = network(x), torch.compile(twin, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    expected.square().sum().backward()
    got.square().sum().backward()
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_size": 0}, "key_size must be at least 1; got 0"),
        ({"top_k": 0}, "top_k must be at least 1; got 0"),
        ({"topk_rule": "hard"}, "topk_rule must be .*threshold.*got 'hard'"),
        ({"rescale": "bilinear"}, "rescale must be .*nearest.*got 'bilinear'"),
        ({"out_kernel_size": 2}, "out_kernel_size must be odd; got 2"),
        ({"spatial_dims": 4}, "spatial_dims must be 1, 2 or 3; got 4"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^NFM: {message}"):
        nfm.NFM(4, **options)


# --- the authors' weights


def full_arrays(*modules: nfm.NFM) -> dict[str, Any]:
    return {
        f"{place}.{name}": tensor.numpy()
        for place, module in enumerate(modules)
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def test_authors_weights_fill_modules_and_skip_what_these_do_not_have() -> None:
    theirs = [nfm.NFM(3, **SMALL), nfm.NFM(5, **SMALL)]
    mine = [nfm.NFM(3, read=False, **SMALL), nfm.NFM(5, **SMALL)]
    nfm.load_authors_weights(mine, full_arrays(*theirs))
    for module, other in zip(mine, theirs, strict=True):
        known = other.state_dict()
        assert all(torch.equal(v, known[k]) for k, v in module.state_dict().items())


def test_authors_batch_norm_is_not_passed_over_silently() -> None:
    arrays = full_arrays(nfm.NFM(3, **SMALL))
    with pytest.raises(ValueError, match=r"'0.out.norm.weight' belongs to no module"):
        nfm.load_authors_weights([nfm.NFM(3, batch_norm=False, **SMALL)], arrays)
    nfm.load_authors_weights([nfm.NFM(3, batch_norm=False, read=False, **SMALL)], arrays)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.pop("0.gamma"), "there is no array '0.gamma'"),
        (lambda a: a.update({"1.gamma": 0.0}), "'1.gamma' belongs to no module"),
        (lambda a: a.update({"0.gama": 0.0}), "'0.gama' belongs to no module"),
        (lambda a: a.update({"0.gamma": [1.0]}), r"'0.gamma' must be \(\); got \(1,\)"),
    ],
)
def test_authors_weights_that_do_not_fit_are_refused(spoil: Any, message: str) -> None:
    module = nfm.NFM(3, **SMALL)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    arrays = full_arrays(nfm.NFM(3, **SMALL))
    spoil(arrays)
    with pytest.raises(ValueError, match=f"^load_authors_weights: {message}"):
        nfm.load_authors_weights([module], arrays)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
