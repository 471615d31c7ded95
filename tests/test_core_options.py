"""Options of cores: one list, which both command lines offer and every layer is made with."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cli
from agents.commands.parsing.options import make_config
from agents.commands.train import train
from agents.config import PPOConfig
from agents.learning.checkpoint import agent_store, load_checkpoint
from agents.model.cores import RecurrentCore
from command_line import COMPARE, ENV, TRAIN, Rims, assert_one_line
from experiments.commands.experiment import _make_configs, task_command
from experiments.configs.sequences import AddingConfig, SequenceConfig
from experiments.registry import TASKS
from experiments.results import RESULTS_NAME
from experiments.shared.cores import Core
from lab.cores import CORE_NAMES, LAYER_OPTIONS, RIM_CORES, CoreSettings
from lab.disk.folder import CONFIG_NAME
from lab.disk.store import CheckpointStore
from rims import RIM_GRU, RIM_LSTM
from rims.checks import CellOptions
from sequence_cases import TINY, options

#: By option: what is typed, and what the layer or its cells then have. Two layers each.
TYPED: dict[str, tuple[str, Any]] = {
    "hidden_size": ("--hidden-size 24", 24),
    "num_layers": ("--num-layers 3", 3),
    "num_rims": ("--num-rims 4", 4),
    "k": ("--k 1", 1),
    "num_input_heads": ("--num-input-heads 2", 2),
    "input_key_size": ("--input-key-size 7", 7),
    "input_value_size": ("--input-value-size 11", 11),
    "input_gate": ("--input-gate none", "none"),
    "competition": ("--competition mechanisms", "mechanisms"),
    "tie_margin": ("--tie-margin 0.01", 0.01),
    "num_comm_heads": ("--num-comm-heads 3", 3),
    "comm_key_size": ("--comm-key-size 5", 5),
    "comm_value_size": ("--comm-value-size 9", 9),
    "comm_reads": ("--comm-reads state", "state"),
    "comm_update": ("--comm-update convex", "convex"),
    "comm_gate_bias": ("--comm-gate-bias -2", -2.0),
    "use_inactive": ("--no-use-inactive", False),
    "blocked_grad": ("--blocked-grad", True),
}

#: Those that agents cannot have: see CoreSettings.
SUPERVISED: dict[str, tuple[str, Any]] = {
    "dropout": ("--dropout 0.25", 0.25),
    "input_dropout": ("--input-dropout 0.25", 0.25),
    "comm_dropout": ("--comm-dropout 0.5", 0.5),
    "init_from_unit_size": ("--init-from-unit-size", True),
}

#: Arguments of a layer that a sequence of one direction, from vectors to vectors, has no use for.
NOT_OFFERED = {
    *("input_size", "hidden_size", "bias", "batch_first", "bidirectional", "proj_size"),
    *("device", "dtype", "input_slots"),
}


def agent(*words: str) -> RecurrentCore:
    """The core of an agent that ``rims train`` would make.

    A command keeps the names of its help option, which are those of the command above it.
    """
    with (
        cli.rims.make_context("rims", []) as parent,
        train.make_context("train", ["--env", ENV, *words], parent) as context,
    ):
        names = {field.name for field in fields(PPOConfig)}
        config = make_config({n: v for n, v in context.params.items() if n in names})
    return RecurrentCore(5, config)


def supervised(core: str, *words: str) -> Core:
    """The core that ``rims experiment adding`` would make."""
    task = TASKS["adding"]
    call = ["--cores", core, "--run-root", "root", *words]
    with task_command(task).make_context("adding", call) as context:
        names = {field.name for field in fields(AddingConfig)}
        given = {n: v for n, v in context.params.items() if n in names}
        (config,) = _make_configs(task, given, None, (core,)).values()
    assert isinstance(config, SequenceConfig)
    return Core(5, config)


def assert_has(layer: nn.Module, name: str, expected: Any) -> None:
    assert isinstance(layer, RIM_LSTM | RIM_GRU)
    name = {"comm_gate_bias": "comm_gate_start"}.get(name, name)  # a parameter has that name
    found = [layer] if hasattr(layer, name) else layer.rim_cells
    assert [getattr(one, name) for one in found] == [expected] * len(found)


@pytest.mark.parametrize("core", RIM_CORES)
@pytest.mark.parametrize("name", TYPED)
def test_every_option_reaches_the_layer_from_both_command_lines(core: str, name: str) -> None:
    words, expected = TYPED[name]
    call = ("--hidden-size", "12", "--num-rims", "3", "--k", "2", "--num-layers", "2")
    assert_has(agent("--core", core, *call, *words.split()).module, name, expected)
    assert_has(supervised(core, *call, *words.split()).module, name, expected)


@pytest.mark.parametrize("core", RIM_CORES)
@pytest.mark.parametrize("name", SUPERVISED)
def test_options_of_supervised_training_reach_the_layer(core: str, name: str) -> None:
    words, expected = SUPERVISED[name]
    call = ("--hidden-size", "12", "--num-rims", "3", "--k", "2", "--num-layers", "2")
    assert_has(supervised(core, *call, *words.split()).module, name, expected)


@pytest.mark.parametrize("core", RIM_CORES)
def test_the_gate_of_the_communication_starts_at_its_bias(core: str) -> None:
    call = ("--core", core, "--comm-gate-bias", "-2", "--num-layers", "2")
    layer = agent(*call).module
    assert isinstance(layer, RIM_LSTM | RIM_GRU)
    for cell in layer.rim_cells:
        for name, parameter in cell.named_parameters():
            if "bias" in name:
                assert (parameter == (-2 if name == "comm_gate_bias" else 0)).all()


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_cores_of_torch_have_layers_too(core: str) -> None:
    call = ("--hidden-size", "12", "--num-layers", "2")
    for layer in (agent("--core", core, *call).module, supervised(core, *call).module):
        assert isinstance(layer, nn.LSTM | nn.GRU)
        assert (layer.num_layers, layer.hidden_size) == (2, 12)
    assert supervised(core, *call, "--dropout", "0.5").module.dropout == 0.5
    assert supervised(core, "--hidden-size", "12", "--dropout", "0.5").module.dropout == 0


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("core", CORE_NAMES)
def test_learned_initial_state_reaches_every_core_with_memory(core: str, learned: bool) -> None:
    settings: dict[str, Any] = {"hidden_size": 12, "num_rims": 3, "k": 2, "num_layers": 2}
    settings["learned_initial_state"] = learned
    made: tuple[RecurrentCore | Core, ...] = (
        RecurrentCore(5, PPOConfig(env=ENV, core=core, **settings)),
        Core(5, SequenceConfig(model=core, **settings)),
    )
    states = {"rim_lstm": 4, "rim_gru": 2, "lstm": 4, "gru": 2, "none": 0}[core] * learned
    for one in made:
        starts = [p for n, p in one.named_parameters() if "initial_" in n or "starts" in n]
        assert sum(start.numel() for start in starts) == 12 * states


def test_the_list_has_every_option_of_the_layers() -> None:
    for core, layer in (("rim_lstm", RIM_LSTM), ("rim_gru", RIM_GRU)):
        named = set(inspect.signature(layer).parameters) - {"options"}
        there = (named | set(CellOptions.__annotations__)) - NOT_OFFERED
        assert set(LAYER_OPTIONS[core]) == there
        assert set(LAYER_OPTIONS[core]) <= set(SequenceConfig.names())
        assert there - set(PPOConfig.names()) == set(SUPERVISED)
    assert tuple(LAYER_OPTIONS) == CORE_NAMES
    own = set(CoreSettings.names()) - {"hidden_size"}
    assert own <= {name for options in LAYER_OPTIONS.values() for name in options}
    assert {*TYPED, *SUPERVISED, "learned_initial_state"} == {*there, "hidden_size"}


@pytest.mark.parametrize("core", RIM_CORES)
def test_a_layer_made_with_the_defaults_is_the_layer_of_the_defaults(core: str) -> None:
    layers = {"rim_lstm": RIM_LSTM, "rim_gru": RIM_GRU}
    torch.manual_seed(0)
    expected = layers[core](5, 600, 6, 4)
    torch.manual_seed(0)
    found = Core(5, SequenceConfig(model=core)).module
    assert repr(found) == repr(expected)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


@pytest.mark.parametrize(
    ("core", "words", "why"),
    [
        ("lstm", "--num-rims 3", "--num-rims needs a core with mechanisms; {} lstm."),
        ("gru", "--comm-reads state", "--comm-reads needs a core with mechanisms; {} gru."),
        ("torch.nn:GRU", "--k 1", "--k needs a core with mechanisms; {} torch.nn:GRU."),
        ("torch.nn:GRU", "--num-layers 2", "--num-layers needs a core with layers; {} torch."),
        ("none", "--num-layers 2", "--num-layers needs a core with layers; {} none."),
        ("none", "--learned-initial-state", "needs a core with memory; {} none."),
        ("rim_gru", "--blocked-grad", "--blocked-grad needs --num-layers above 1."),
        ("rim_gru", "--no-use-inactive", "--use-inactive needs --num-layers above 1."),
        (
            "rim_gru",
            "--num-rims 4 --k 4 --comm-reads state",
            "--comm-reads needs --k below",
        ),
        (
            "rim_gru",
            "--num-rims 4 --k 4 --tie-margin 0.01",
            "--tie-margin needs --k below",
        ),
        *(
            (
                "rim_gru",
                f"--num-comm-heads 0 {words}",
                f"{words.split()[0]} needs --num-comm-heads above 0.",
            )
            for words in ("--comm-update convex", "--comm-gate-bias -2", "--comm-key-size 3")
        ),
        (
            "rim_gru",
            "--input-gate none --competition mechanisms",
            "--competition needs --input-gate null or straight_through.",
        ),
        ("lstm", "--input-gate none", "--input-gate needs a core with mechanisms; {} lstm."),
        (
            "rim_gru",
            "--num-layers 2 --no-use-inactive --blocked-grad",
            "--blocked-grad needs --use-inactive.",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_alike(
    rims: Rims, core: str, words: str, why: str
) -> None:
    for call, compared in (
        ((*TRAIN, "--core", core), "--core is"),
        ((*COMPARE, "--cores", core), "--cores names none, but"),
        (("experiment", "adding", "--run-root", "r", "--cores", core), "--cores names none, but"),
    ):
        assert why.format(compared) in assert_one_line(rims(*call, *words.split()))
    assert list(Path().iterdir()) == []


def test_an_option_that_one_of_the_cores_has_is_taken() -> None:
    two = SequenceConfig(model="lstm"), SequenceConfig(model="rim_lstm")
    assert "k" in two[0].unused
    assert "k" not in two[1].unused
    assert two[0].differences(SequenceConfig(model="lstm", k=1, comm_reads="state")) == {}
    assert PPOConfig(env=ENV, core="gru").differences(PPOConfig(env=ENV, core="gru", k=1)) == {}
    assert two[1].differences(SequenceConfig(model="rim_lstm", k=1)) == {"k": (4, 1)}


# Files of earlier versions ----------------------------------------------------------------------

#: Settings that came with the options of this file.
NEW = {*TYPED, *SUPERVISED} - {"hidden_size", "num_rims", "k"}
NEW_IN_EXPERIMENTS = NEW - {
    *("input_key_size", "input_value_size", "num_comm_heads", "comm_key_size"),
    *("comm_value_size", "dropout"),
}


def test_settings_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    path = tmp_path / CONFIG_NAME
    new = PPOConfig(env=ENV, seed=3, k=2)
    path.write_text("".join(_lines(new.to_toml(), without=NEW)))
    assert "num_layers" not in path.read_text()
    assert PPOConfig.read(path) == new
    config = AddingConfig(seed=3, k=2, input_key_size=5)
    path.write_text("".join(_lines(config.to_toml(), without=NEW_IN_EXPERIMENTS)))
    assert "num_layers" not in path.read_text()
    assert AddingConfig.read(path) == config


def _lines(text: str, without: set[str]) -> list[str]:
    return [line for line in text.splitlines(True) if line.split(" = ")[0] not in without]


def test_a_run_of_an_earlier_version_goes_on(rims: Rims, toy_run: Path) -> None:
    shutil.copytree(toy_run, "run")
    path = Path("run") / CONFIG_NAME
    path.write_text("".join(_lines(path.read_text(), without=NEW)))
    store = agent_store(Path("run"))
    stored = store.load()
    config = {name: v for name, v in stored.about["config"].items() if name not in NEW}
    about = {**stored.about, "config": config}
    store.save(stored.number, stored.tensors, about, score=stored.score)
    assert load_checkpoint(Path("run")).config == load_checkpoint(toy_run).config
    result = rims("resume", "run", "--total-steps", "512")
    assert result.code == 0, result.err


# Cores by import path in experiments ------------------------------------------------------------

DATA: dict[str, Any] = {
    **{"train_length": 4, "test_lengths": "4", "steps_per_epoch": 2, "epochs": 1},
    **{"validation_sequences": 3, "test_sequences": 3},
}
CALL = ("experiment", "adding", "--run-root", "root", "--jobs", "1", *options({**TINY, **DATA}))


def test_a_core_of_ones_own_is_trained_and_compared(
    rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "core_mine", raising=False)
    Path("core_mine.py").write_text("from torch import nn\nclass Mine(nn.GRU):\n    pass\n")
    cores = "rim_gru,core_mine:Mine,none"
    result = rims(*CALL, "--cores", cores, "--learned-initial-state", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert list(told["models"]) == cores.split(",")
    size = sum(p.numel() for p in nn.GRU(5, 6).parameters()) + 6
    assert told["models"]["core_mine:Mine"]["sizes"]["parameters of the core"] == size
    folder = Path("root") / "core_mine.Mine-seed0"
    assert (folder / RESULTS_NAME).is_file()
    assert CheckpointStore(folder, "experiment").numbers()
    assert AddingConfig.read(folder / CONFIG_NAME).model == "core_mine:Mine"
    again = rims(*CALL, "--cores", cores, "--learned-initial-state", "--report-only", "--json")
    assert json.loads(again.out)["models"] == told["models"]


@pytest.mark.parametrize(
    ("core", "hint"),
    [
        ("nowhere_at_all:Core", "No module named 'nowhere_at_all'"),
        ("torch.nn:GRUCell", "core 'torch.nn:GRUCell': called with an input of shape (2, 3, 5)"),
        ("torch.nn:Conv2d", "core 'torch.nn:Conv2d' cannot be made"),
        ("lsmt", "did you mean 'lstm'?"),
    ],
)
def test_a_core_that_cannot_be_used_is_one_line(rims: Rims, core: str, hint: str) -> None:
    assert hint in assert_one_line(rims(*CALL, "--cores", f"rim_gru,{core}"))
    assert list(Path().iterdir()) == []


def test_a_core_of_ones_own_can_have_equal_parameters(rims: Rims) -> None:
    call = (*CALL, "--hidden-size", "48", "--match-params", "--json")
    result = rims(*call, "--cores", "rim_gru,torch.nn:GRU")
    assert result.code == 0, result.err
    sizes = [
        one["sizes"]["parameters of the core"] for one in json.loads(result.out)["models"].values()
    ]
    assert abs(sizes[1] / sizes[0] - 1) <= 0.02


def test_settings_are_written_in_the_order_of_the_help() -> None:
    config = PPOConfig(env=ENV)
    names = [line.split(" = ")[0] for line in config.to_toml().splitlines()]
    assert names == [field.name for field in PPOConfig.fields_in_order()]
    assert set(names) == set(asdict(config))
    assert names.index("core") + 1 == names.index("hidden_size")
