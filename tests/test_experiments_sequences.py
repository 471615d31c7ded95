"""``rims experiment`` for cores: --cores, --match-params, pictures, early stopping, mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from command_line import Rims, assert_one_line, tree
from experiment_cases import LineExperiment, line, stop_at
from experiments.configs.base import ExperimentConfig
from experiments.configs.sequences import CORES, AddingConfig, CopyingConfig, whole_numbers
from experiments.fit import fit
from experiments.judging import comparison as comparing
from experiments.judging.figures import plot_rows
from experiments.registry import TASKS
from experiments.results import RESULTS_NAME
from experiments.shared.cores import with_equal_parameters
from experiments.tasks.adding import AddingExperiment
from experiments.tasks.copying import CopyingExperiment
from image_cases import Crash
from sequence_cases import RIM_SETTINGS, TINY, options

DATA: dict[str, Any] = {
    "train_length": 4,
    "test_lengths": "4",
    "steps_per_epoch": 2,
    "validation_sequences": 3,
    "test_sequences": 3,
    "epochs": 1,
}
SETTINGS = {**TINY, **DATA}
OF_MECHANISMS = {f"--{name.replace('_', '-')}" for name in SETTINGS if name in RIM_SETTINGS}
CALL = ("experiment", "adding", "--run-root", "root", "--jobs", "1", *options(SETTINGS))


#: The same without what only mechanisms have.
PLAIN = tuple(word for i, word in enumerate(CALL) if not {word, CALL[i - 1]} & OF_MECHANISMS)


@pytest.fixture
def trained(rims: Rims, tmp_path: Path) -> Path:
    """Finished runs of two cores, as ``root`` in the current folder."""
    root = tmp_path / "here" / "root"
    for core in ("lstm", "rim_gru"):
        fit(AddingExperiment(AddingConfig(model=core, **SETTINGS)), root / f"{core}-seed0")
    return root


# Tables and pictures ----------------------------------------------------------------------------


def test_report_speaks_of_cores_and_of_their_sizes(trained: Path, rims: Rims) -> None:
    result = rims(*CALL, "--cores", "lstm,rim_gru", "--report-only")
    assert result.code == 0
    assert "# adding: lstm, rim_gru" in result.out
    assert "Each core minus lstm, seed by seed" in result.out
    section = result.out.partition("## Cores")[2]
    assert "| core | hidden size | parameters of the core | parameters |" in section
    own = sum(p.numel() for p in nn.LSTM(5, 6).parameters())
    assert f"| lstm | 6 | {own} | {own + 15 + 7} |" in section
    plain = json.loads((trained / "results.json").read_text())
    assert plain["models"]["lstm"]["sizes"] == {"hidden size": 6, "parameters of the core": own}
    assert plain["settings"]["num_rims"] == 3  # of the one of the two in which it does something


def test_matched_cores_have_their_own_sizes(rims: Rims, tmp_path: Path) -> None:
    root = tmp_path / "here" / "root"
    first_config = AddingConfig(model="lstm", **{**SETTINGS, "hidden_size": 48})
    other = with_equal_parameters(replace(first_config, model="gru"), first_config)
    for config in (first_config, other):
        fit(AddingExperiment(config), root / f"{config.model}-seed0")
    call = (*PLAIN, "--hidden-size", "48")
    result = rims(*call, "--cores", "lstm,gru", "--match-params")
    assert result.code == 0
    plain = json.loads((root / "results.json").read_text())
    assert plain["flags"] == []  # they are the runs that the command would have trained
    first, second = (plain["models"][core]["sizes"] for core in ("lstm", "gru"))
    assert first["hidden size"] == 48 != second["hidden size"]
    ratio = second["parameters of the core"] / first["parameters of the core"]
    assert abs(ratio - 1) <= 0.02
    assert "hidden_size" not in plain["settings"]
    line = assert_one_line(rims(*call, "--cores", "lstm,gru"))
    assert "was made with hidden_size=" in line


@pytest.mark.parametrize(("errors", "scale"), [((0.5, 0.1), "linear"), ((5e3, 0.1), "log")])
def test_errors_far_apart_are_drawn_on_a_logarithmic_axis(
    trained: Path, errors: tuple[float, float], scale: str
) -> None:
    configs = {core: AddingConfig(model=core, **SETTINGS) for core in ("lstm", "rim_gru")}
    runs = comparing.plan(TASKS["adding"], configs, (0,), trained)
    for run, error in zip(runs, errors, strict=True):
        path = run.folder / RESULTS_NAME
        results = json.loads(path.read_text())
        path.write_text(json.dumps({**results, "metrics": {"error_4": error}}))
    (panel,) = plot_rows(comparing.assemble(TASKS["adding"], runs)).axes
    assert panel.get_yscale() == scale


def test_sizes_that_cannot_be_matched_are_one_line(rims: Rims, tmp_path: Path) -> None:
    line = assert_one_line(rims(*CALL, "--cores", "lstm,rim_gru", "--match-params"))
    assert "core 'rim_gru' cannot have about as many parameters as 'lstm'" in line
    assert line.endswith("Name 'rim_gru' first, or take another --hidden-size.")
    assert tree(tmp_path / "here") == {}


def test_activity_is_drawn_of_a_core_that_has_mechanisms(trained: Path, rims: Rims) -> None:
    call = (*CALL, "--report-only", "--show-activity")
    result = rims(*call, "a.png", "--cores", "lstm,rim_gru")
    assert result.code == 0
    assert result.err.splitlines()[-1] == "Written: a.png"
    with Image.open(trained.parent / "a.png") as image:
        assert image.size[0] > image.size[1] > 100
        height = image.size[1]
    layers = ("--cores", "rim_gru", "--num-layers", "2", "--run-root", "two")
    assert rims(*CALL, *layers, "--show-activity", "two.png").code == 0
    with Image.open(trained.parent / "two.png") as image:
        assert image.size[1] > 1.5 * height
    plain = (*PLAIN, "--report-only", "--show-activity", "b.png", "--cores", "lstm,gru")
    told = assert_one_line(rims(*plain))
    assert "shows a run of rim_lstm or rim_gru; name it in --cores." in told
    told = assert_one_line(rims(*call, "b.gif", "--cores", "rim_gru"))
    assert "--show-activity must end in .png, .svg or .pdf" in told
    result = rims(*call, "b.png", "--cores", "lstm,rim_lstm")
    assert result.code == 1
    assert "there is no finished run of rim_lstm or rim_gru." in result.err
    assert not (trained.parent / "b.png").exists()


@pytest.mark.parametrize("name", [name for name in TASKS if issubclass(
    TASKS[name].config, AddingConfig.__mro__[2]
)])  # fmt: skip
def test_tasks_on_sequences_compare_all_cores(rims: Rims, name: str) -> None:
    task = TASKS[name]
    assert task.models == CORES
    text = rims("experiment", name, "--help").out
    for option in ("--cores", "--match-params", "--show-activity", "--num-rims", "RIM:"):
        assert option in text
    assert "--model" not in text


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--cores", "lstm,grue"),
            "lstm, gru, none, or package.module:Class; got 'grue'; did you mean 'gru'?",
        ),
        (("--cores", "lstm,gru"), "--num-rims needs a core with mechanisms; --cores names none, "),
        (("--hidden-size", "7"), "--hidden-size must be a multiple of --num-rims 3 for rim_lstm"),
        (("--cores", "gru,rim_gru", "--hidden-size", "7"), "--num-rims 3 for rim_gru; got 7."),
        (("--k", "4"), "--k must be at most --num-rims 3; got 4."),
        (("--test-lengths", "4,4"), "--test-lengths must be whole numbers from 2 to 1000000"),
        (("--test-lengths", "1"), "--test-lengths must be whole numbers from 2"),
        (("--test-lengths", ""), "--test-lengths must be whole numbers from 2"),
        (("--patience", "-1"), "--patience must be at least 0; got -1."),
        (("--momentum", "0.5"), "--momentum is used by sgd alone; the optimizer is adam."),
        (("--model", "lstm"), "--model"),
    ],
)
def test_mistake_is_one_line_before_any_work(
    rims: Rims, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    assert said in assert_one_line(rims(*CALL, *arguments))
    assert tree(tmp_path / "here") == {}


def test_sizes_that_only_mechanisms_could_not_have_are_taken(rims: Rims) -> None:
    result = rims(*PLAIN, "--cores", "lstm", "--hidden-size", "7", "--report-only")
    assert "does not exist" in result.err  # the next thing to be wrong


def test_whole_numbers_are_told_in_rising_order_wherever_they_stand() -> None:
    assert whole_numbers("x", " 7, 3,10", 3) == (3, 7, 10)
    for text in ("2,3", "a", "3,,4", "3;4", "-3", "3.0", "9" * 30):
        with pytest.raises(ValueError, match="must be whole numbers from 3 to 1000000"):
            whole_numbers("x", text, 3)


# Early stopping and bfloat16 --------------------------------------------------------------------


class Told(LineExperiment):
    """The evaluations are as they are told to be."""

    losses = (5.0, 4.0, 4.5, 3.0, 6.0, 3.0, 3.5, 1.0, 1.0, 1.0)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"validation_loss": self.losses[(self.first + self.taken) // 6 - 1]}

    first = 0  # steps made before

    def test(self, model: nn.Module) -> dict[str, float]:
        return {"error": 0.0, "share": 1.0}


def told(**settings: Any) -> Told:
    return Told(line(**{"epochs": 10, **settings}).config)


@pytest.mark.parametrize(
    ("patience", "last", "best"), [(1, 3, 2), (2, 6, 4), (3, 7, 4), (0, 10, 8)]
)
def test_training_ends_after_so_many_evaluations_that_were_not_better(
    tmp_path: Path, patience: int, last: int, best: int
) -> None:
    results = fit(told(patience=patience), tmp_path)
    assert (results.steps, results.judged_epoch) == (6 * last, best)


def test_patience_counts_evaluations_not_epochs(tmp_path: Path) -> None:
    results = fit(told(patience=2, evaluate_every=2), tmp_path)
    assert results.steps == 6 * 10  # 4, 3, 3, 1, 1: never two in a row that are not better


@pytest.mark.parametrize("step", [14, 29, 35])
def test_patience_goes_on_where_it_was(tmp_path: Path, step: int) -> None:
    def crash() -> None:
        raise Crash

    crashing = told(patience=2, checkpoint_every=1)
    crashing.before_step = stop_at(step, crash)
    with pytest.raises(Crash):
        fit(crashing, tmp_path)
    again = told(patience=2, checkpoint_every=1)
    again.first = step
    results = fit(again, tmp_path)
    assert (results.steps, results.judged_epoch) == (36, 4)


def test_patience_without_validation_is_refused() -> None:
    class AtTheEnd(LineExperiment):
        selection = None

    with pytest.raises(ValueError, match=r"--patience is by what .* line judges the weights at"):
        AtTheEnd(line(patience=1).config).check()
    AtTheEnd(line().config).check()


class Listening(CopyingExperiment):
    """Keeps of what type logits are in training."""

    def __init__(self, config: CopyingConfig) -> None:
        super().__init__(config)
        self.seen: set[torch.dtype] = set()

    def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        self.seen.add(model(batch.inputs)[0].dtype)
        return super().loss(model, batch, generator)


@pytest.mark.parametrize("core", CORES)
def test_bf16_computes_products_in_bfloat16(tmp_path: Path, core: str) -> None:
    settings: dict[str, Any] = {**TINY, "epochs": 1, "steps_per_epoch": 3, "test_blanks": "50"}
    settings |= {"validation_sequences": 2, "test_sequences": 2, "model": core}
    losses = []
    for bf16 in (False, True):
        experiment = Listening(CopyingConfig(**settings, bf16=bf16))
        results = fit(experiment, tmp_path / str(bf16))
        assert experiment.seen == {torch.bfloat16 if bf16 else torch.float32}
        losses.append(results.metrics["cross_entropy_50"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_early_settings_are_those_of_all_tasks() -> None:
    for task in TASKS.values():
        assert issubclass(task.config, ExperimentConfig)
        names = set(task.config.__dataclass_fields__)
        assert {"patience", "bf16"} <= names


def test_runs_of_one_task_are_kept_apart_by_core_and_seed(tmp_path: Path) -> None:
    configs = {core: AddingConfig(model=core, **SETTINGS) for core in ("lstm", "gru")}
    runs = comparing.plan(TASKS["adding"], configs, (0, 3), tmp_path)
    assert [run.folder.name for run in runs] == [
        "lstm-seed0", "lstm-seed3", "gru-seed0", "gru-seed3",
    ]  # fmt: skip
    assert [(run.config.model, run.config.seed) for run in runs][1] == ("lstm", 3)
