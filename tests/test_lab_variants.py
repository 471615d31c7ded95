"""Variants of a comparison, and comparisons that name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Rims, assert_one_line
from experiments.configs.sequences import AddingConfig
from lab.settings import ConfigError
from lab.variants import own_settings, with_variant

BASE = AddingConfig(hidden_size=12, num_rims=6, k=4)


def test_a_variant_has_its_own_settings_and_shares_the_others() -> None:
    name = "rim_gru+k=2+init-from-unit-size=true+learning_rate=1e-4+comm_reads=state"
    found = with_variant(BASE, name, "model")
    assert found == AddingConfig(
        model="rim_gru",
        hidden_size=12,
        num_rims=6,
        k=2,
        init_from_unit_size=True,
        learning_rate=1e-4,
        comm_reads="state",
    )
    assert with_variant(BASE, "lstm", "model") == AddingConfig(
        model="lstm", hidden_size=12, num_rims=6, k=4
    )


@pytest.mark.parametrize("name", ["lstm+", "lstm+k", "lstm+k=", "lstm+=2", "lstm+k=1+k=2", "+k=1+"])
def test_other_forms_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must have the form"):
        own_settings(name)


@pytest.mark.parametrize(
    ("name", "field", "rule"),
    [
        ("rim_lstm+k=9", "k", "must be at most --num-rims 6"),
        ("rim_lstm+k=2.5", "k", "must be of type int"),
        ("rim_lstm+kk=2", "kk", "did you mean 'k'"),
        ("rim_lstm+seed=2", "seed", "is no setting in which variants may differ"),
        ("rim_lstm+threads=2", "threads", "is no setting in which variants may differ"),
        ("rim_lstm+train_length=9", "train_length", "is no setting"),
        ("rim_lstm+comm_reads=stat", "comm_reads", "must be one of candidate, state"),
        ("rim_lstm+init_from_unit_size=1", "init_from_unit_size", "must be true or false"),
        ("rim_lstm+dropout=nan", "dropout", "must be in"),
        ("lstm+k=2", "k", "needs a core with mechanisms"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, field: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_variant(BASE, name, "model")
    assert caught.value.field == field
    assert rule in caught.value.rule
    assert repr(name) in caught.value.rule


def test_a_plus_sign_of_a_number_joins_nothing() -> None:
    assert own_settings("lstm+learning_rate=1e+3+k=2") == {"learning_rate": "1e+3", "k": "2"}
    assert own_settings("lstm+learning_rate=2.E+1") == {"learning_rate": "2.E+1"}


ADDING = (
    *("experiment", "adding", "--hidden-size", "12", "--batch-size", "4", "--epochs", "1"),
    *("--steps-per-epoch", "2", "--train-length", "5", "--test-lengths", "5,7"),
)


def test_an_experiment_compares_variants_of_a_core(rims: Rims, tmp_path: Path) -> None:
    call = (*ADDING, "--cores", "rim_lstm,rim_lstm+k=6,lstm", "--run-root", str(tmp_path / "runs"))
    result = rims(*call, "--match-params", "--json")
    assert result.code == 0, result
    found = json.loads(result.out)
    assert list(found["models"]) == ["rim_lstm", "rim_lstm+k=6", "lstm"]
    parameters = [model["parameters"] for model in found["models"].values()]
    assert parameters[0] == parameters[1]
    assert "k = 6\n" in (tmp_path / "runs" / "rim_lstm+k=6-seed0" / "config.toml").read_text()
    assert "| rim_lstm+k=6 - rim_lstm |" in (tmp_path / "runs" / "results.md").read_text()

    again = rims(*call, "--match-params", "--report-only")
    assert again.code == 0
    assert "No run" not in again.out


def test_agents_are_compared_as_variants_of_a_core(rims: Rims, tmp_path: Path) -> None:
    result = rims(
        *(
            "compare",
            "--suite",
            "empty",
            "--cores",
            "rim_lstm,rim_lstm+k=2+entropy_coefficient=0.02",
        ),
        *("--seeds", "1", "--total-steps", "64", "--episodes", "2", "--hidden-size", "8"),
        *("--num-envs", "2", "--rollout-steps-per-env", "4", "--minibatches", "1"),
        *("--tasks", "Empty-Random-6x6", "--backend", "gymnasium"),
        *("--run-root", str(tmp_path / "runs"), "--json"),
    )
    assert result.code == 0, result
    assert list(json.loads(result.out)["cores"]) == [
        "rim_lstm",
        "rim_lstm+k=2+entropy_coefficient=0.02",
    ]
    (folder,) = (tmp_path / "runs").glob("rim_lstm+k=2*")
    settings = (folder / "config.toml").read_text()
    assert "\nk = 2\n" in settings
    assert "\nentropy_coefficient = 0.02\n" in settings


@pytest.mark.parametrize("command", [ADDING, ("compare", "--suite", "empty")])
def test_a_size_of_ones_own_is_not_matched(
    rims: Rims, tmp_path: Path, command: tuple[str, ...]
) -> None:
    root = tmp_path / "runs"
    cores = "rim_lstm,lstm+hidden_size=24"
    call = (*command, "--cores", cores, "--match-params", "--run-root", str(root))
    assert "its hidden_size is what --match-params chooses" in assert_one_line(rims(*call))
    assert not root.exists()


@pytest.mark.parametrize("command", [ADDING, ("compare", "--suite", "empty")])
def test_cores_that_cannot_be_matched_are_named_as_variants(
    rims: Rims, tmp_path: Path, command: tuple[str, ...]
) -> None:
    cores = "rim_lstm+num_rims=3+k=1,rim_lstm+num_rims=12+k=1"
    call = (*command, "--hidden-size", "12", "--cores", cores, "--match-params")
    said = assert_one_line(rims(*call, "--run-root", str(tmp_path / "runs")))
    assert "'rim_lstm+num_rims=12+k=1' beside 'rim_lstm+num_rims=3+k=1': core 'rim_lstm'" in said


@pytest.mark.parametrize("command", [ADDING, ("compare", "--suite", "empty")])
@pytest.mark.parametrize(
    "cores",
    [
        *("rim_lstm+k=99", "rim_lstm+k", "rimlstm+k=2", "lstm+k=2"),
        *("rim_lstm,rim_lstm+num_input_heads=1", "rim_lstm+k=2,rim_lstm+k=02"),
        "lstm+learning_rate=0." + "0" * 200 + "1",
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    rims: Rims, tmp_path: Path, command: tuple[str, ...], cores: str
) -> None:
    root = tmp_path / "runs"
    assert_one_line(rims(*command, "--cores", cores, "--run-root", str(root)))
    assert not root.exists()
