"""Tensors whose numbers are not where machine code would read them are refused in one line.

They are given to a process of its own, which a wrong address may end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

import rims
from forked import SERVER
from layer_cases import B, D, I, Kind, T, make, states
from nfm.attention import MemoryEntry
from nfm.fast import attend
from rims.scan.problem import Weights

pytest.importorskip("numba", reason="machine code needs numba")

#: Makes another tensor of one.
Change = Callable[[Tensor], Tensor]


def moved(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def faked(tensor: Tensor) -> Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(tensor)


def shorter(tensor: Tensor) -> Tensor:
    return tensor[:-1]


def single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def run(kind: Kind, hx: Any = None, **flags: Tensor) -> None:
    make(kind)(torch.randn(T, B, I), hx, **flags)


def with_state(kind: Kind, change: Change, which: int = 0) -> None:
    parts = [torch.randn(1, B, D) for _ in range(kind.cell_type.num_states)]
    parts[which] = change(parts[which])
    run(kind, tuple(parts) if len(parts) > 1 else parts[0])


def with_flags(kind: Kind, change: Change, name: str) -> None:
    run(kind, **{name: change(torch.ones(T, B, dtype=torch.bool))})


def with_places(kind: Kind, change: Change) -> None:
    place = torch.zeros(T, B, dtype=torch.int64)
    make(kind)(rims.RepeatedInput(torch.randn(2, I), change(place)))


def with_weight(kind: Kind, change: Change) -> None:
    layer = make(kind)
    layer.cells[0].comm_key_weight.data = change(layer.cells[0].comm_key_weight.data)
    layer(torch.randn(T, B, I))


def with_hook_on_state(kind: Kind, change: Change) -> None:
    layer = make(kind)
    layer.cells[0].register_forward_pre_hook(
        lambda module, args: (args[0], tuple(map(change, args[1])))
    )
    layer(torch.randn(T, B, I), states(kind, 1, B, D))


def with_hook_on_flags(kind: Kind, change: Change) -> None:
    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        over = kwargs["over"]
        return args, {"over": over._replace(reset=change(over.reset))}

    layer = make(kind)
    layer.cells[0].register_forward_pre_hook(hook, with_kwargs=True)
    layer(torch.randn(T, B, I), reset=torch.ones(T, B, dtype=torch.bool))


def with_saved(kind: Kind, change: Change) -> None:
    layer = make(kind).double()
    with saved_tensors_hooks(lambda tensor: tensor, change):
        output = layer(torch.randn(T, B, I).double())[0]
    output.sum().backward()


def with_operator(kind: Kind, change: Change) -> None:
    layer = make(kind)
    h = change(torch.randn(B, D))
    c = h if kind is rims.RIM_LSTM else None
    w, rules = Weights.of(layer.cells[0]).given(), (2, 4, False, "native", False)
    torch.ops.rims.scan(torch.randn(T, B, I), h, c, None, None, w, None, None, *rules)


def with_memory(kind: Kind, change: Change) -> None:
    memory = [MemoryEntry(change(torch.randn(2, 4, 3, 3)), torch.randn(2, 6, 3, 3))]
    attend(torch.randn(2, 4, 3, 3), memory, num_heads=2)


def with_saved_memory(kind: Kind, change: Change) -> None:
    query = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    with saved_tensors_hooks(lambda tensor: tensor, change):
        read = attend(query, [MemoryEntry(query, query)], num_heads=2).read
    torch.autograd.grad(read.sum(), query)


ON_META = (
    r"^RuntimeError: \w+: input and {0} are not at the same device; the input is on cpu, {0} on "
    r"meta\. Move one: {0}\.to\('cpu'\)\.$"
)
NOT_SO_MANY = r"^RuntimeError: rims: machine code was to read \d+ numbers of torch.\w+ on the CPU;"
BY_TORCH = r"^RuntimeError: Tensor on device cpu is not on the expected device meta!$"
FAKE = r"^AssertionError: Please convert all Tensors to FakeTensors first"

CASES: list[tuple[Any, Change, str]] = [
    (with_state, moved, ON_META.format("hx")),
    (partial(with_state, which=-1), moved, ON_META.format("hx")),
    (with_state, faked, FAKE),
    (partial(with_flags, name="reset"), moved, ON_META.format("reset")),
    (partial(with_flags, name="reset"), faked, FAKE),
    (partial(with_flags, name="mask"), moved, ON_META.format("mask")),
    (with_places, moved, ON_META.format("place")),
    (with_weight, shorter, NOT_SO_MANY),
    (with_hook_on_state, moved, ON_META.format("hx")),
    (with_hook_on_state, shorter, NOT_SO_MANY),
    (with_hook_on_flags, moved, BY_TORCH),
    (with_hook_on_flags, shorter, NOT_SO_MANY),
    (with_saved, moved, BY_TORCH),
    (with_saved, faked, NOT_SO_MANY),
    (with_saved, shorter, NOT_SO_MANY),
    (with_saved, single, NOT_SO_MANY),
    (with_operator, Tensor.double, NOT_SO_MANY),
    (with_operator, shorter, NOT_SO_MANY),
    (with_memory, shorter, NOT_SO_MANY),
    (with_saved_memory, moved, NOT_SO_MANY),
    (with_saved_memory, shorter, NOT_SO_MANY),
]


def tell(kind: Kind, pipe: Any) -> None:
    """Send what each case raises, in their order."""
    torch.set_num_threads(1)
    for case, change, _ in CASES:
        try:
            case(kind, change=change)
            pipe.send("no error")
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("kind", [rims.RIM_LSTM, rims.RIM_GRU])
def test_machine_code_gets_no_address_of(kind: Kind) -> None:
    here, there = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=tell, args=(kind, there))
    process.start()
    there.close()
    for case, change, expected in CASES:
        try:
            told = here.recv()
        except EOFError:
            process.join()
            told = f"the process ended with {process.exitcode}"
        assert re.search(expected, told), (case, change, told)
    process.join()
