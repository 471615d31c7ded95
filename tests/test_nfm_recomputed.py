"""NFM where a call is computed again, interrupted, nested, in threads, transformed or compiled.

What a call knows must not be gone then; the controls are the same without, or the plain call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import nfm
from nfm import NFM, NFMNetwork, insert
from nfm.models import VAE, IQNHead
from tolerances import assert_near

SMALL: Any = {"key_size": 4, "value_size": 3, "num_heads": 2, "top_k": 3, "batch_norm": False}

both_ways = pytest.mark.parametrize("reentrant", [False, True])


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def x(_double: None) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 9, 9, requires_grad=True)


class Saving(nn.Module):
    """Somebody's network, which can save memory between its two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.way: Callable[..., Any] = lambda block, x: block(x)

    def block(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.a(x).tanh())
        return result

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.c(self.way(self.block, x))
        return result


def again(reentrant: bool) -> Callable[..., Any]:
    return lambda block, *args: checkpoint(block, *args, use_reentrant=reentrant)


def inserted(x: Tensor, at: list[str], way: Callable[..., Any] | None = None) -> nfm.NFMInserted:
    torch.manual_seed(1)
    network = insert(Saving(), at=at, example=x.detach(), **SMALL)
    awake(network)
    for model in network.models:
        if way is not None:
            model.way = way  # type: ignore[assignment]
    return network


def awake(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)


def gradients(network: nn.Module, x: Tensor, way: Callable[..., Any] | None = None) -> list[Tensor]:
    network.zero_grad()
    output: Tensor = network(x) if way is None else way(network, x)
    torch.autograd.backward(output.square().sum())
    assert all(p.grad is not None for p in network.parameters())
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other)


# --- computed again


@both_ways
def test_a_network_that_is_computed_again_as_a_whole(reentrant: bool, x: Tensor) -> None:
    network = inserted(x, ["a", "b"])
    assert_same(gradients(network, x, again(reentrant)), gradients(network, x))


@both_ways
def test_parts_without_nfm_may_be_computed_again(reentrant: bool, x: Tensor) -> None:
    network, control = inserted(x, ["c"], again(reentrant)), inserted(x, ["c"])
    assert_same(gradients(network, x), gradients(control, x))


@both_ways
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's, in no_grad
@pytest.mark.parametrize("at", [["a"], ["b", "c"], ["a", "b", "c"]])
def test_a_place_that_would_be_computed_again_without_nfm_is_refused(
    reentrant: bool, at: list[str], x: Tensor
) -> None:
    network = inserted(x, at, again(reentrant))
    message = rf"^insert: submodule '{at[0]}' is called inside torch.utils.checkpoint, .*whole"
    with pytest.raises(RuntimeError, match=message):
        network(x)
    with torch.no_grad():  # nothing is computed again
        assert_near(network(x), inserted(x, at)(x))
    alone: Any = network.models[-1]
    torch.autograd.backward(alone(x).sum())  # without NFM
    model = Saving()
    model.way = again(reentrant)
    with pytest.raises(ValueError, match=message):
        insert(model, at=at, example=x, **SMALL)


def test_a_place_that_loses_its_gradients_later_is_refused(x: Tensor) -> None:
    def without(block: Callable[..., Any], x: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = block(x)
        return result

    network = inserted(x, ["a", "b"], without)
    with pytest.raises(RuntimeError, match=r"^insert: submodule 'a' is called without gradients"):
        network(x)


def test_one_layer_computed_again_with_its_memory(x: Tensor) -> None:
    torch.manual_seed(1)
    units = nn.ModuleList([NFM(3, **SMALL), NFM(3, **SMALL), NFM(3, **SMALL)])
    awake(units)
    results = []
    for saved in (False, True):
        units.zero_grad()
        map, memory = x, ()
        for unit in units:
            map, memory = (
                checkpoint(unit, map, memory, use_reentrant=False) if saved else unit(map, memory)
            )
        torch.autograd.backward(map.square().sum())
        results.append([p.grad.clone() for p in units.parameters() if p.grad is not None])
    assert len(results[0]) == len(list(units.parameters()))
    assert_same(*results)


@both_ways
def test_a_trace_has_what_is_computed_again_once(reentrant: bool, x: Tensor) -> None:
    network = inserted(x, ["a", "b"])
    for way in (None, again(reentrant)):
        with nfm.trace(network) as record:
            gradients(network, x, way)
            gradients(network, x, way)
        assert [reading.visit for reading in record.readings] == [1] * 6
        assert [len(reading.sources) for reading in record.readings] == [2, 4, 5] * 2


@both_ways
def test_numbers_that_could_not_be_drawn_again_are_refused(reentrant: bool, x: Tensor) -> None:
    way = again(reentrant)
    network = inserted(x, ["a", "b"])
    with nfm.random_attention(network):
        network(x)
        with pytest.raises(RuntimeError, match=r"^random_attention: .* inside torch.utils.checkp"):
            way(network, x)
    generator = torch.Generator()
    vae, head = VAE(image_size=8, width=2, latent_size=3), IQNHead(7, 3, hidden=5)
    images, features = torch.rand(2, 1, 8, 8).requires_grad_(), torch.rand(2, 7).requires_grad_()
    for where, model, args in (
        ("reparameterise", vae, (images,)),
        ("IQNHead", head, (features, 5)),
    ):
        model(*args, generator=generator)
        way(model, *args)  # torch's own numbers are drawn again as they were
        with pytest.raises(RuntimeError, match=rf"^{where}: .* inside torch.utils.checkpoint"):
            way(lambda *a, m=model: m(*a, generator=generator)[0], *args)


# --- nested calls, copies of a call, threads


def test_a_hook_inside_may_call_the_network(x: Tensor) -> None:
    network = inserted(x, ["a", "b"])
    expected = network(x)
    depth = 0

    def look(*_: Any) -> None:
        nonlocal depth
        if depth == 0:
            depth = 1
            assert_near(network(x), expected)
            depth = 0

    for model in network.models:
        model.get_submodule("a").register_forward_pre_hook(look)
    assert_near(network(x), expected)
    with nfm.trace(network) as record:
        network(x)
    lengths = [len(reading.sources) for reading in record.readings]
    assert lengths == [2, 4, 5, 2, 2, 4, 5, 4, 5]  # the inner calls come before a has returned


def test_nfm_inside_a_network_with_nfm(x: Tensor) -> None:
    """The end of an outer pass is not taken for that of an inner one."""
    inner = inserted(x, ["a", "b"])
    network = insert(copy.deepcopy(inner), at=["models.0.a"], example=x, **SMALL)
    ends = [model.get_submodule("models.1.c") for model in network.models]
    called: list[nn.Module] = []
    for end in ends:
        end.register_forward_hook(lambda module, args, output: called.append(module))
    assert_near(network(x), inner(x))
    assert called == ends[1:]
    awake(network.nfms)
    assert not torch.equal(network(x), inner(x))
    gradients(network, x)


def test_calls_in_two_threads_do_not_meet(x: Tensor) -> None:
    network = inserted(x, ["a", "b"])
    inputs = [torch.randn(2, 3, 9, 9) for _ in range(8)]
    expected = [network(one) for one in inputs]
    with nfm.trace(network) as record, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(network, inputs))
    assert_same(found, expected)
    assert (
        sorted(len(reading.sources) for reading in record.readings) == [2] * 8 + [4] * 8 + [5] * 8
    )
    assert {reading.visit for reading in record.readings} == {1}


def test_a_network_that_calls_its_parts_in_threads_is_refused(x: Tensor) -> None:
    def elsewhere(block: Callable[..., Any], x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            result: Tensor = pool.submit(block, x).result()
        return result

    network = inserted(x, ["a", "b"], elsewhere)
    with pytest.raises(RuntimeError, match=r"^insert: none of \['a', 'b'\] was called in this thr"):
        network(x)


def test_a_place_called_twice_is_refused(x: Tensor) -> None:
    network = inserted(x, ["a", "c"], lambda block, x: block(x) + block(x))
    with pytest.raises(RuntimeError, match=r"^insert: submodule 'a' was called twice in a pass"):
        network(x)


def test_an_interruption_leaves_nothing_behind(x: Tensor) -> None:
    network = inserted(x, ["a", "b"])
    expected = network(x)
    handle = network.models[-1].get_submodule("b").register_forward_pre_hook(interrupt)
    with nfm.trace(network) as record:
        with pytest.raises(KeyboardInterrupt):
            network(x)
        handle.remove()
        assert_near(network(x), expected)
        alone: Any = network.models[-1]
        alone(x)  # without NFM
    assert [len(reading.sources) for reading in record.readings] == [2, 4, 2, 4, 5]


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


# --- transforms and compiled code


def test_function_transforms_around_the_whole(x: Tensor) -> None:
    network = inserted(x, ["a", "b"])
    own: dict[str, Tensor] = dict(network.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(network, parameters, (x[None],))
        return out.square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(own, x.detach())
    expected = gradients(network, x)
    assert_same([per_sample[name].sum(0) for name in own], expected)
    assert_same(gradients(network, x), expected)  # nothing is left of it


def test_a_place_inside_a_function_transform_is_refused(x: Tensor) -> None:
    def by_sample(block: Callable[..., Any], x: Tensor) -> Tensor:
        result: Tensor = torch.func.vmap(lambda one: block(one[None])[0])(x)
        return result

    network = inserted(x, ["a", "b"], by_sample)
    with pytest.raises(
        RuntimeError, match=r"^insert: submodule 'a' is called inside a function tr"
    ):
        network(x)


def test_a_trace_of_a_transformed_call_is_refused(x: Tensor) -> None:
    network = NFMNetwork([nn.Conv2d(3, 4, 3)], [4], passes=1, **SMALL)
    with nfm.trace(network) as record:
        with pytest.raises(RuntimeError, match=r"^trace: 'nfms.sets.0.0' is called inside a func"):
            torch.func.vmap(lambda one: network(one[None]))(x.detach())
        network(x)
    assert len(record.readings) == 1


def test_a_trace_of_a_compiled_network(x: Tensor) -> None:
    network = inserted(x, ["a", "b"])
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert_near(compiled(x), network(x))
    for one in (network, compiled):
        with nfm.trace(one) as record:  # type: ignore[arg-type]
            compiled(x)
        assert [len(reading.sources) for reading in record.readings] == [2, 4, 5]
    torch._dynamo.reset()
