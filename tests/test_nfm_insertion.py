"""Networks that are hard to put NFM into: frozen, without parameters, catching every error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nfm
from nfm import insert

SMALL: Any = {"key_size": 4, "value_size": 3, "num_heads": 2, "top_k": 3}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3))


def awake(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)


class Careless(nn.Module):
    """Goes on when a part of it fails, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.caught = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        try:
            x = self.second(x)
        except Exception:
            self.caught += 1
        return x


def test_a_network_that_catches_exceptions_cannot_swallow_the_end_of_a_pass(x: Tensor) -> None:
    network: Any = insert(Careless(), at=["first", "second"], example=x, **SMALL)
    assert network(x).shape == (2, 4, 6, 6)
    assert [model.caught for model in network.models] == [0, 0]


def test_maps_that_depend_on_no_parameter(x: Tensor) -> None:
    for model in (
        nn.Sequential(nn.AvgPool2d(2), nn.ReLU()),  # there are none
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 1)),  # they come after the last place
    ):
        network = insert(model, at=["0"], example=x, batch_norm=False, **SMALL)
        assert torch.equal(network(x), model(x))
        awake(network)
        network(x).square().sum().backward()
        assert all(p.grad is not None for p in network.parameters())


class NoGrad(nn.Module):
    """Its trunk runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.after = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.trunk(x)
        result: Tensor = self.after(features)
        return result


def test_a_place_without_gradients_is_refused_and_one_behind_it_learns(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^insert: submodule 'trunk' is called without gradients"):
        insert(NoGrad(), at=["trunk"], example=x, **SMALL)
    network = insert(NoGrad(), at=["after"], example=x, **SMALL)
    awake(network)
    network(x).square().sum().backward()
    assert all(p.grad is not None for p in network.nfms.parameters())
    first, last = network.models
    assert first.get_parameter("trunk.weight") is last.get_parameter("trunk.weight")


def test_frozen_parameters_stay_frozen_in_all_passes(x: Tensor) -> None:
    model = plain()
    model[0].requires_grad_(False)
    network = insert(model, at=["1", "2"], example=x, **SMALL)
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == [f"models.{k}.0.{name}" for k in (0, 1) for name in ("weight", "bias")]


@pytest.mark.parametrize("training", [False, True])
def test_it_is_in_the_mode_of_the_model(training: bool, x: Tensor) -> None:
    model = plain().train(training)
    model[1].eval()  # as when its statistics are to stay
    network = insert(model, at=["1", "2"], example=x, **SMALL)
    assert network.training is training
    assert all(module.training is training for module in network.nfms.modules())
    for each in network.models:
        assert not each.get_submodule("1").training
        assert each.get_submodule("2").training is training


def test_maps_of_other_axes_than_asked_for_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^insert: all maps must have 1 axes; got \[2\]"):
        insert(plain(), at=["0"], example=x, spatial_dims=1, **SMALL)


def test_a_submodule_under_two_names_is_called_twice(x: Tensor) -> None:
    twice = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match=r"'1' must be called once in a pass; it was called 2"):
        insert(nn.Sequential(twice, twice, nn.ReLU()), at=["1"], example=x, **SMALL)


def test_a_place_inside_another_place(x: Tensor) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 4, 3))
    network = insert(model, at=["1", "0", "0.0"], example=x, **SMALL)
    assert network.at == ("0.0", "0", "1")
    assert torch.equal(network(x), model(x))


def test_two_insertions_into_one_model_do_not_meet(x: Tensor) -> None:
    model = plain().eval()
    expected = model(x)
    one = insert(model, at=["0", "2"], example=x, **SMALL)
    alone = one(x)
    awake(one)
    first = one(x)
    two = insert(model, at=["1"], example=x, **SMALL)
    assert torch.equal(two(x), expected)
    awake(two)
    assert not torch.equal(two(x), expected)
    assert torch.equal(alone, expected)
    assert torch.equal(one(x), first)
    assert torch.equal(model(x), expected)


def test_options_that_cannot_be_leave_no_hook_behind(x: Tensor) -> None:
    model = plain()
    with pytest.raises(ValueError, match=r"^NFM: top_k must be at least 1"):
        insert(model, at=["0"], example=x, top_k=0)
    assert not any(module._forward_hooks for module in model.modules())


def test_importing_draws_no_random_numbers() -> None:
    import importlib

    import nfm.authors

    before = torch.get_rng_state()
    importlib.reload(nfm.authors)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("dims", "shape"), [(2, (4, 5, 6)), (2, (2, 4, 6)), (1, (4, 6))])
def test_a_map_without_a_batch_is_refused(dims: int, shape: tuple[int, ...]) -> None:
    module = nfm.NFM(4, spatial_dims=dims, batch_norm=False, **SMALL)
    with pytest.raises(ValueError, match=r"^NFM: input must be \(B, C, (Y, )?X\); got \("):
        module(torch.zeros(shape))
