"""Traces of networks that are not one plain list of modules, and what is drawn of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nfm
from nfm import NFM, NFMNetwork

SMALL: Any = {"key_size": 4, "value_size": 3, "num_heads": 2, "top_k": 3, "batch_norm": False}


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 4, 5, 5)


def convs(count: int) -> list[nn.Module]:
    return [nn.Conv2d(4, 4, 3, padding=1) for _ in range(count)]


def test_networks_inside_one_network_have_sources_of_their_own(x: Tensor) -> None:
    one, two = (NFMNetwork(convs(2), [4, 4], passes=1, **SMALL) for _ in range(2))
    both = nn.Sequential(one, two)
    with nfm.trace(both) as record:
        both(x)
        both(x)
    names = ["0.nfms.sets.0.0", "0.nfms.sets.0.1", "1.nfms.sets.0.0", "1.nfms.sets.0.1"]
    assert [reading.reader for reading in record.readings] == 2 * names
    assert [reading.sources for reading in record.readings] == 2 * [
        (names[0], "null"),
        (names[0], names[1], "null"),
        (names[2], "null"),
        (names[2], names[3], "null"),
    ]
    assert {reading.visit for reading in record.readings} == {1}


class ByName(nn.Module):
    """Hands the memory on by the name of the argument, and uses its first NFM again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = NFM(4, **SMALL), NFM(4, write=False, **SMALL)

    def forward(self, x: Tensor) -> Tensor:
        x, memory = self.a(x)
        x, memory = self.b(x, memory=memory)
        result: Tensor = self.a(x, memory=memory)[0]
        return result


def test_memory_given_by_name(x: Tensor) -> None:
    network = ByName()
    with nfm.trace(network) as record:
        network(x)
        network(x)
    one_call = [
        ("a", 1, ("a", "null"), (1, 1)),
        ("b", 1, ("a", "null"), (1, 1)),
        ("a", 2, ("a", "a", "null"), (1, 2, 1)),
    ]
    assert [reading[:4] for reading in record.readings] == 2 * one_call
    panel = nfm.plot_attention(record).axes[0]
    assert [t.get_text() for t in panel.get_xticklabels()] == ["a", "a (2)", "null"]
    assert [t.get_text() for t in panel.get_yticklabels()] == ["a", "b", "a (2)"]
    shares = panel.images[0].get_array()
    assert shares is not None
    np.testing.assert_allclose(np.ma.filled(shares, 0.0).sum(1), 1, rtol=1e-5)  # every row


def test_shared_parameters_where_the_first_pass_does_not_write(x: Tensor) -> None:
    flags: Any = {"passes": 3, "share": True, "write": (False, True, True)}
    network = NFMNetwork(convs(2), [4, 4], **flags, **SMALL)
    with nfm.trace(network) as record:
        network(x)
    panel = nfm.plot_attention(record).axes[0]
    assert [t.get_text() for t in panel.get_xticklabels()] == ["2.1", "2.2", "3.1", "3.2", "null"]
    assert [t.get_text() for t in panel.get_yticklabels()] == ["2.1", "3.1", "3.2"]


def test_calls_of_a_part_of_the_traced_network_begin_anew_too(x: Tensor) -> None:
    network = NFMNetwork(convs(2), [4, 4], passes=1, share=True, **SMALL)
    whole = nn.ModuleDict({"part": network})
    with nfm.trace(whole) as record:
        network(x)
        network(x)
    assert [reading.visit for reading in record.readings] == [1, 1, 1, 1]
    assert [len(reading.sources) for reading in record.readings] == [2, 3, 2, 3]


def test_a_call_that_failed_leaves_nothing_behind(x: Tensor) -> None:
    network = NFMNetwork(convs(2), [4, 4], share=True, **SMALL)
    with nfm.trace(network) as record:
        with pytest.raises(RuntimeError):
            network(torch.zeros(1, 3, 5, 5))
        network(x)
    assert [reading.visit for reading in record.readings] == [1, 2, 2]
    assert not any(module._forward_hooks for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())
