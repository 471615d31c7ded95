"""Adam over one vector changes nothing but the time it takes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from agents.config import PPOConfig
from agents.learning.optimizer import flatten, make_optimizer

CONFIG = PPOConfig(suite="doorkey", learning_rate=0.01, adam_epsilon=1e-5)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False)).double()


def test_steps_equal_adam_over_each_parameter() -> None:
    flat, plain = make_network(), make_network()
    ours = make_optimizer(flat, CONFIG)
    reference = torch.optim.Adam(plain.parameters(), lr=0.01, eps=1e-5)
    for step in range(5):
        input = torch.randn(11, 5, dtype=torch.float64)
        norms = []
        for network, optimizer in ((flat, ours), (plain, reference)):
            optimizer.zero_grad(set_to_none=False)
            (network(input).square().sum() * (step + 1)).backward()
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            norms.append(nn.utils.clip_grad_norm_(trained, 0.5))
            optimizer.step()
        torch.testing.assert_close(norms[0], norms[1], rtol=1e-12, atol=0)
        for one, other in zip(flat.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_parameters_keep_their_values_and_stay_views() -> None:
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    flat = flatten(network)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        assert parameter.data_ptr() % 64 == flat.data_ptr() % 64
    network.load_state_dict({name: 2 * value for name, value in before.items()})
    total = torch.stack([2 * value.sum() for value in before.values()]).sum()
    torch.testing.assert_close(flat.detach().sum(), total)


def test_clearing_gradients_keeps_them_views() -> None:
    network = make_network()
    optimizer = make_optimizer(network, CONFIG)
    (flat,) = optimizer.param_groups[0]["params"]
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        network(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
    expected = sum(float(p.grad.sum()) for p in network.parameters() if p.grad is not None)
    assert abs(float(flat.grad.sum()) - expected) < 1e-12
    assert expected != 0


def test_what_is_not_trained_stays_as_it_is() -> None:
    network = make_network()
    network.register_parameter("steps", nn.Parameter(torch.tensor([3]), requires_grad=False))
    flat = flatten(network)
    steps = network.get_parameter("steps")
    assert steps.dtype == torch.int64
    assert steps.untyped_storage().data_ptr() != flat.untyped_storage().data_ptr()


def test_parameters_of_several_types_are_refused() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="of one type; they are float32, float64"):
        flatten(network)
