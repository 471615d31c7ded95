"""Cores from settings: one interface, states that go on, sizes with equal parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from core_cases import HalfEmpty, OwnLayers, OwnLSTM, ScaledGRU, by_path
from experiments.configs.sequences import CORES, SequenceConfig
from experiments.shared.cores import Core as Wrapped
from experiments.shared.cores import core_parameters, with_equal_parameters
from experiments.shared.sequences import SequenceModel
from lab.cores import RIM_CORES
from rims import RIM_GRU, RIM_LSTM, RepeatedInput
from sequence_cases import TINY

each_core = pytest.mark.parametrize("core", CORES)

#: Also the control without memory, and classes that take no packed sequences.
OTHERS = ("none", by_path(OwnLSTM), by_path(OwnLayers), by_path(ScaledGRU), by_path(HalfEmpty))


def config(core: str, **settings: Any) -> SequenceConfig:
    return SequenceConfig(model=core, **{**TINY, **settings})


def made(core: str, **settings: Any) -> Wrapped:
    torch.manual_seed(0)
    return Wrapped(5, config(core, **settings))


@each_core
def test_weights_and_numbers_are_those_of_the_layer(core: str) -> None:
    wrapped = made(core)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {name: TINY[name] for name in ("input_key_size", "num_comm_heads")}
    sizes |= {name: TINY[name] for name in ("comm_key_size", "comm_value_size")}
    layers: dict[str, Callable[[], nn.Module]] = {
        "rim_lstm": lambda: RIM_LSTM(5, 6, 3, 2, **sizes),
        "rim_gru": lambda: RIM_GRU(5, 6, 3, 2, **sizes),
        "lstm": lambda: nn.LSTM(5, 6),
        "gru": lambda: nn.GRU(5, 6),
    }
    layer = layers[core]()
    input = torch.randn(7, 2, 5)
    torch.testing.assert_close(wrapped(input)[0], layer(input)[0])


@each_core
@pytest.mark.parametrize("learned", [False, True])
def test_state_goes_on(core: str, learned: bool) -> None:
    wrapped = made(core, learned_initial_state=learned)
    with torch.no_grad():
        for start in wrapped.starts:
            start.normal_()
    input = torch.randn(9, 2, 5)
    whole, behind = wrapped(input)
    first, state = wrapped(input[:4])
    second, last = wrapped(input[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    assert len(last) == len(behind) == (2 if core.endswith("lstm") else 1)
    for one, other in zip(last, behind, strict=True):
        torch.testing.assert_close(one, other)
    anew, _ = wrapped(input[4:])
    assert not torch.allclose(anew, second)


@pytest.mark.parametrize("core", [*CORES, *OTHERS])
@pytest.mark.parametrize("learned", [False, True])
def test_packed_sequences_are_run_one_by_one(core: str, learned: bool) -> None:
    wrapped, lengths = made(core, learned_initial_state=learned), [4, 6, 1]
    with torch.no_grad():
        for start in wrapped.starts:
            start.normal_()
    input = torch.randn(6, 3, 5)
    packed = pack_padded_sequence(input, torch.tensor(lengths), enforce_sorted=False)
    for state in (None, wrapped(torch.randn(2, 3, 5))[1]):
        output, behind = wrapped(packed, state)
        padded, _ = pad_packed_sequence(output)
        for i, length in enumerate(lengths):
            before = None if state is None else tuple(part[:, i : i + 1] for part in state)
            alone, its = wrapped(input[:length, i : i + 1], before)
            torch.testing.assert_close(padded[:length, i : i + 1], alone)
            for part, expected in zip(behind, its, strict=True):
                torch.testing.assert_close(part[:, i], expected[:, 0])


@each_core
def test_learned_start_is_learned(core: str) -> None:
    plain, learning = made(core), made(core, learned_initial_state=True)
    more = sum(p.numel() for p in learning.parameters()) - sum(
        p.numel() for p in plain.parameters()
    )
    assert more == (12 if core.endswith("lstm") else 6)
    input = torch.randn(3, 2, 5)
    torch.testing.assert_close(learning(input)[0], plain(input)[0])  # it begins with zeros
    learning(input)[0].square().sum().backward()
    starts = [p for n, p in learning.named_parameters() if "initial" in n or "starts" in n]
    assert sum(p.numel() for p in starts) == more
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in starts)


@each_core
def test_rim_cores_read_repeated_tokens_once_with_the_same_numbers(
    core: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = SequenceModel(nn.Embedding(4, 5), config(core), 3)
    given = []
    forward = model.core.module.forward

    def listening(input: Any, *rest: Any) -> Any:
        given.append(type(input))
        return forward(input, *rest)

    monkeypatch.setattr(model.core.module, "forward", listening)
    tokens = torch.randint(4, (6, 2))
    output, _ = model(tokens)
    assert given == [RepeatedInput if core in RIM_CORES else torch.Tensor]
    expected, _ = model.core(model.embedding(tokens))
    torch.testing.assert_close(output, model.head(expected))
    last, _ = model(tokens, last_only=True)
    torch.testing.assert_close(last, output[-1])


def test_dropout_is_of_what_the_core_reads_and_gives_in_training_alone() -> None:
    torch.manual_seed(0)
    model = SequenceModel(nn.Embedding(4, 5), config("gru", dropout=0.5), 3)
    tokens = torch.randint(4, (6, 2))
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    read = model._read(tokens)
    assert isinstance(read, torch.Tensor)
    assert 0 < float((read == 0).float().mean()) < 1
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    assert isinstance(model._read(tokens), RepeatedInput)


def built(settings: SequenceConfig) -> int:
    return sum(p.numel() for p in Wrapped(settings.embedding_size, settings).parameters())


@pytest.mark.parametrize(("core", "other"), list(permutations(CORES, 2)))
def test_equal_parameters_are_equal_within_two_percent(core: str, other: str) -> None:
    sizes: dict[str, Any] = {"hidden_size": 384, "embedding_size": 32, "num_rims": 6, "k": 4}
    reference = SequenceConfig(model=other, **sizes)
    found = with_equal_parameters(replace(reference, model=core), reference)
    assert abs(built(found) / built(reference) - 1) <= 0.02
    assert found.model == core
    assert found.hidden_size % (6 if core in RIM_CORES else 1) == 0
    assert replace(found, model=other, hidden_size=384) == reference


@each_core
def test_parameters_are_counted_without_making_them(core: str) -> None:
    for learned in (False, True):
        settings = config(core, learned_initial_state=learned)
        assert core_parameters(settings) == built(settings)
    assert core_parameters(config(core, hidden_size=3 * 2**18)) > 10**10


def test_every_setting_of_mechanisms_reaches_the_layer() -> None:
    sizes = {
        "num_rims": 2,
        "k": 1,
        "input_key_size": 7,
        "input_value_size": 11,
        "num_comm_heads": 3,
        "comm_key_size": 5,
        "comm_value_size": 9,
    }
    layer = made("rim_lstm", **sizes).module
    expected = RIM_LSTM(
        5, 6, 2, 1, input_key_size=7, input_value_size=11, num_comm_heads=3, comm_key_size=5,
        comm_value_size=9,
    )  # fmt: skip
    shapes = [{n: p.shape for n, p in one.named_parameters()} for one in (layer, expected)]
    assert shapes[0] == shapes[1]
    assert layer.k == 1
    default = made("rim_lstm").module
    assert isinstance(default, RIM_LSTM)
    size = default.rim_cells[0].weight_ih.shape[-1]
    assert size == 4 * 2  # four times the features of a mechanism
