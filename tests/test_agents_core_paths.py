"""Cores of the user's own, given by import path: what is asked of them, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.learning.checkpoint import load_checkpoint
from agents.learning.train import Trainer
from agents.model.cores import RecurrentCore, require_usable
from command_line import TOY, TRAIN, Rims, assert_one_line
from core_cases import (
    HIDDEN_SIZE,
    INPUT_SIZE,
    DeepLSTM,
    OwnLayers,
    OwnLSTM,
    OwnLSTMWithReset,
    ScaledGRU,
    assert_same,
    by_path,
    make_config,
    make_core,
    make_reset,
    make_sequence,
    step_by_step,
)
from lab.cores import CORE_NAMES, core_label, folder_name


def test_state_of_a_core_by_path_has_the_form_it_returned() -> None:
    shapes = {
        OwnLSTM: [(1, 3, HIDDEN_SIZE), (2, 3, HIDDEN_SIZE // 2)],
        OwnLayers: [(3, 3, HIDDEN_SIZE)],
        DeepLSTM: [(2, 3, HIDDEN_SIZE)] * 2,
    }
    for core_class, expected in shapes.items():
        core = make_core(by_path(core_class))
        state = core.initial_state(3)
        assert [tuple(part.shape) for part in state] == expected
        assert all(part.dtype == torch.float64 for part in state)


class Reservoir(nn.Module):
    """Nothing in it is a parameter."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(input_size, hidden_size))

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output = (input @ self.get_buffer("weight")).cumsum(0)
        output = output if hx is None else output + hx
        return output, output[-1:]


def test_a_core_without_parameters_has_states_of_its_type() -> None:
    core = make_core(by_path(Reservoir), learned=False)
    assert core.initial_state(2)[0].dtype == torch.float64
    input, state = make_sequence(core)
    reset = make_reset("random")
    assert_same(core(input, state, reset)[0], step_by_step(core, input, state, reset)[0])


@pytest.mark.parametrize(
    ("core_class", "learned", "calls"),
    [
        (OwnLSTMWithReset, False, 1),
        (OwnLSTMWithReset, True, 3),  # only from here can episodes start as they learned to
        (DeepLSTM, True, 1),
        (ScaledGRU, True, 3),
        (OwnLayers, False, 3),
    ],
)
def test_a_core_is_called_no_more_often_than_its_contract_demands(
    core_class: type[nn.Module], learned: bool, calls: int
) -> None:
    core = make_core(by_path(core_class), learned)
    seen: list[int] = []
    core.module.register_forward_hook(lambda *_: seen.append(1))
    input, state = make_sequence(core)
    core(input, state, make_reset("inside"))  # two steps at which an episode starts
    assert len(seen) == calls


def test_a_core_by_path_keeps_the_weights_it_was_made_with() -> None:
    torch.manual_seed(3)
    expected = OwnLayers(INPUT_SIZE, HIDDEN_SIZE).state_dict()
    torch.manual_seed(3)
    core = RecurrentCore(INPUT_SIZE, make_config(by_path(OwnLayers)))
    found = core.module.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Broken(OwnLayers):
    """Keeps the contract but for what ``breaks`` does to output and state."""

    @staticmethod
    def breaks(output: Tensor, h: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        return self.breaks(*super().forward(input, hx))


class Wide(Broken):
    @staticmethod
    def breaks(output: Tensor, h: Tensor) -> Any:
        return torch.cat([output, output], -1), h


class OutputOnly(Broken):
    @staticmethod
    def breaks(output: Tensor, h: Tensor) -> Any:
        return output


class FlatState(Broken):
    @staticmethod
    def breaks(output: Tensor, h: Tensor) -> Any:
        return output, h[0]


class ListOfStates(Broken):
    @staticmethod
    def breaks(output: Tensor, h: Tensor) -> Any:
        return output, list(h)


class NestedState(Broken):
    @staticmethod
    def breaks(output: Tensor, h: Tensor) -> Any:
        return output, ((h, h), (h, h))


class Counting(Broken):
    @staticmethod
    def breaks(output: Tensor, h: Tensor) -> Any:
        return output, (h, torch.zeros(1, 3, 1, dtype=torch.int64))


class BatchFirst(nn.GRU):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, batch_first=True)


class Growing(nn.Module):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, hidden_size)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output = self.linear(input)
        return output, output[-1:] if hx is None else torch.cat([hx, output[-1:]])


class NeedsMore(nn.Module):
    def __init__(self, input_size: int, hidden_size: int, heads: int) -> None:
        super().__init__()


class NeedsState(OwnLayers):
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if hx is None:
            raise RuntimeError("no state\nwas given.")
        return super().forward(input, hx)


class Forgetful(OwnLayers):
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, h = super().forward(input, hx)
        return nn.functional.dropout(output, 0.1, self.training), h


MISTAKES = {
    Forgetful: ["same input gave different outputs in two calls", "dropout"],
    Wide: ["shape (2, 3, 12) = (T, B, hidden_size)", "shape (2, 3, 24)"],
    OutputOnly: ["expected output, hx", "got a float32 tensor of shape (2, 3, 12)"],
    FlatState: ["(layers, 3, features)", "got a float32 tensor of shape (3, 12)"],
    ListOfStates: ["got a list of [a float32 tensor of shape (3, 12), "],
    NestedState: ["got a tuple of [a tuple of ["],
    Counting: ["floating-point", "int64 tensor of shape (1, 3, 1)"],
    BatchFirst: ["(layers, 3, features)", "shape (1, 2, 12)"],
    Growing: ["keep its form", "((1, 12),)", "((2, 12),)"],
    NeedsMore: ["cannot be made", "NeedsMore(input_size=128, hidden_size=12)", "heads"],
    NeedsState: ["shape (2, 3, 128)", "hx = None", "RuntimeError: no state was given."],
    nn.GRUCell: ["torch.nn:GRUCell"],
}


@pytest.mark.parametrize("core_class", MISTAKES)
def test_a_core_that_breaks_the_contract_is_refused_before_any_work(
    tmp_path: Path, core_class: type[nn.Module]
) -> None:
    path = "torch.nn:GRUCell" if core_class is nn.GRUCell else by_path(core_class)
    config = make_config(path)
    with pytest.raises(ValueError, match=r".") as caught:
        require_usable(config)
    message = str(caught.value)
    assert "\n" not in message
    for words in (repr(path), *MISTAKES[core_class]):
        assert words in message
    with pytest.raises(ValueError, match=r".") as again:
        Trainer(config, tmp_path / "run")
    assert str(again.value) == message
    assert list(tmp_path.iterdir()) == []


def test_names_of_cores_for_tables_and_folders() -> None:
    assert [core_label(name) for name in CORE_NAMES] == list(CORE_NAMES)
    assert [folder_name(name) for name in CORE_NAMES] == list(CORE_NAMES)
    assert core_label("mypkg.mymodule:MyLSTM") == "MyLSTM"
    assert folder_name("mypkg.mymodule:MyLSTM") == "mypkg.mymodule.MyLSTM"


# From the command line, which does not have the current directory among its modules.


def write_module(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, name, raising=False)
    Path(f"{name}.py").write_text("from torch import nn\n" + source)


def test_a_core_in_the_current_directory_is_trained_and_loaded(
    rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module("core_of_mine", "class Mine(nn.GRU):\n    pass\n", monkeypatch)
    before = list(sys.path)
    assert rims(*TRAIN, *TOY, "--core", "core_of_mine:Mine").code == 0
    assert sys.path == before
    (folder,) = Path("runs").iterdir()
    assert folder.name == "Empty-5x5-core_of_mine.Mine-0"
    assert type(load_checkpoint(folder).make_policy().core.module).__name__ == "Mine"
    assert rims("evaluate", str(folder), "--episodes", "2").code == 0


def test_a_core_that_cannot_be_used_is_one_line_and_leaves_no_folder(
    rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "class Both(nn.GRU):\n    def __init__(self, i, h):\n"
    source += "        super().__init__(i, h, bidirectional=True)\n"
    write_module("core_both_ways", source, monkeypatch)
    line = assert_one_line(rims(*TRAIN, *TOY, "--core", "core_both_ways:Both"))
    assert "shape (2, 3, 16) = (T, B, hidden_size)" in line
    assert [path.name for path in Path().iterdir()] == ["core_both_ways.py"]


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("core", "hint"),
    [
        ("lsmt", "did you mean 'lstm'?"),
        ("nowhere_at_all:Core", "No module named 'nowhere_at_all'"),
        ("torch.nn:LSMT", "has no 'LSMT'"),
    ],
)
def test_an_unknown_core_is_one_line(rims: Rims, command: str, core: str, hint: str) -> None:
    if command == "train":
        line = assert_one_line(rims(*TRAIN, "--core", core))
    else:
        line = assert_one_line(
            rims("compare", "--suite", "empty", "--run-root", "root", "--cores", f"lstm,{core}")
        )
    assert ("--core" if command == "train" else "--cores") in line
    assert hint in line
    assert list(Path().iterdir()) == []
