"""Networks that change tensors in place, with NFM inside and without: the same gradients.

With every gamma 0 a network with NFM is the network without, which is the control of all of these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nfm
from nfm import NFM, NFMNetwork, fast, insert
from nfm.models import NoisyLinear
from tolerances import assert_near

SMALL: Any = {"key_size": 4, "value_size": 3, "num_heads": 2, "top_k": 3, "batch_norm": False}
#: All that two passes can do, but for none that writes, where there is nothing to read.
FLAGS = [
    {"read": read, "write": write}
    for read, write in product(product((False, True), repeat=2), repeat=2)
]


@pytest.fixture
def x(_path: None) -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["native", "pytorch"], autouse=True)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    if request.param == "pytorch":
        monkeypatch.setattr(fast, "_is_for_native", lambda query, memory: False)
    yield
    torch.set_default_dtype(torch.float32)


class Residual(nn.Module):
    """As torchvision writes them: ``+=`` and ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skip = self.body(x)
        skip += x
        result: Tensor = self.last(self.relu(skip))
        result *= 0.5
        return result


class Twice(nn.Module):
    """Hands out one map under two names, of which the network changes the second."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        map = self.inner(x)
        return map, map


class OfTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.last = Twice(), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        map, same = self.twice(x)
        result: Tensor = self.last(map * 1)
        return result.add(same.mul_(2).mean())


class OnItsInput(nn.Module):
    """Changes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor, rest: dict[str, Tensor]) -> Tensor:
        x -= rest.pop("mean")
        result: Tensor = self.second(self.first(x).tanh_())
        return result


def vgg() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))


def gradients(network: nn.Module, *args: Any) -> list[Tensor]:
    network.zero_grad()
    network(*args).square().sum().backward()
    last = network.models[-1] if isinstance(network, nfm.NFMInserted) else network
    return [p.grad.clone() for p in last.parameters() if p.grad is not None]


def awake(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)


@pytest.mark.parametrize("flags", [*FLAGS, {"share": True}], ids=str)
@pytest.mark.parametrize(
    ("make", "at"),
    [(vgg, ["0", "2"]), (vgg, ["0", "1"]), (Residual, ["stem", "body", "relu"]),
     (OfTwice, ["twice", "last"])],
)  # fmt: skip
def test_gradients_are_those_without_nfm(
    make: Callable[[], nn.Module], at: list[str], flags: Any, x: Tensor
) -> None:
    model = make()
    plain = copy.deepcopy(model)
    network = insert(model, at=at, example=x, **flags, **SMALL)
    expected = gradients(plain, x)
    found = gradients(network, x)
    assert len(found) == len(expected) == len(list(model.parameters()))
    for gradient, own in zip(found, expected, strict=True):
        assert_near(gradient, own)


def test_a_frozen_network_that_changes_maps_in_place_lets_nfm_learn(x: Tensor) -> None:
    network = insert(vgg().requires_grad_(False), at=["0", "2"], example=x, **SMALL)
    awake(network)
    network(x).square().sum().backward()
    assert all(p.grad is not None for p in network.nfms.parameters())


def test_changing_in_place_or_not_is_the_same_to_nfm(x: Tensor) -> None:
    """Where NFM reads and its gammas are not 0; the control changes nothing in place."""
    model = vgg()
    network = insert(model, at=["0", "1", "2"], example=x, **SMALL)
    awake(network)
    twin = copy.deepcopy(network)
    for each in twin.models:
        each.get_submodule("1").inplace = False  # type: ignore[assignment]
    for one in (network, twin):
        one(x).square().sum().backward()
    pairs = zip(network.parameters(), twin.parameters(), strict=True)
    for own, other in pairs:
        assert own.grad is not None
        assert other.grad is not None
        assert_near(own.grad, other.grad)


@pytest.mark.parametrize("share", [False, True])
def test_every_pass_gets_the_arguments_as_they_came(share: bool, x: Tensor) -> None:
    def rest() -> dict[str, Tensor]:
        return {"mean": torch.full((3, 1, 1), 2.0)}

    model, example = OnItsInput(), (x.clone(), rest())
    plain = copy.deepcopy(model)
    network = insert(model, at=["first", "second"], example=example, share=share, **SMALL)
    assert torch.equal(example[0], x)  # the dry run has changed nothing
    assert list(example[1]) == ["mean"]
    given, to_plain = x.clone(), x.clone()
    assert_near(network(given, rest()), plain(to_plain, rest()))
    assert torch.equal(given, to_plain)  # changed once, as without NFM
    expected = gradients(plain, x.clone(), rest())
    for gradient, own in zip(gradients(network, x.clone(), rest()), expected, strict=True):
        assert_near(gradient, own)


def test_every_pass_of_a_list_of_modules_gets_its_input_as_it_came(x: Tensor) -> None:
    # ELU twice is not ELU.
    layers = [nn.Sequential(nn.ELU(inplace=True), nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 4, 3)]
    network = NFMNetwork(layers, [3, 4], **SMALL)
    seen: list[Tensor] = []
    for stack in network.stacks:
        elu: Any = stack[0][0]  # type: ignore[index]
        elu.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
    network(x.clone())
    assert len(seen) == 2
    assert all(torch.equal(one, x) for one in seen)


def test_the_dry_run_does_not_take_later_changes_of_a_map_for_the_map(x: Tensor) -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.after = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.place(x)
            y += self.after(x)
            return y

    network = insert(Adds(), at=["place"], example=x, **SMALL)
    awake(network)
    network(x).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("write", [False, True])
def test_the_map_of_one_layer_may_be_changed_before_and_after(
    read: bool, write: bool, x: Tensor
) -> None:
    results = []
    for in_place in (False, True):
        torch.manual_seed(0)
        first, second = NFM(3, **SMALL), NFM(3, read=read, write=write, **SMALL)
        awake(second)
        map = x.clone()
        y, memory = second(map, first(x)[1])
        y = y.relu_() if in_place else y.relu()
        if in_place:
            map.zero_()
        loss = y.square().sum() + sum(t.sum() for entry in memory for t in entry)
        loss.backward()
        results.append([p.grad for p in (*first.parameters(), *second.parameters())])
    for own, other in zip(*results, strict=True):
        assert_near(own, other)


def test_noise_may_be_drawn_anew_before_the_gradient(x: Tensor) -> None:
    layer = NoisyLinear(9, 5)
    before = x.clone().requires_grad_()
    loss = layer(before).square().sum()
    expected = torch.autograd.grad(loss, [before, *layer.parameters()], retain_graph=True)
    layer.resample()
    found = torch.autograd.grad(loss, [before, *layer.parameters()])
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own, other)
