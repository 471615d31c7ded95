"""Sequential MNIST: what is read in which order, its judgement and going on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Rims, assert_one_line, tree
from experiments.configs.sequences import SequentialMNISTConfig
from experiments.fit import fit
from experiments.judging.comparison import Comparison, Finished
from experiments.registry import TASKS
from experiments.results import Results
from experiments.tasks.sequential_mnist import SequentialMNISTExperiment
from image_cases import assert_goes_on, write_digits
from sequence_cases import SMALL, TINY, TWO_CORES, Told, one_hot

DATA: dict[str, Any] = {"train_side": 5, "test_sides": "5,7", "batch_size": 10}

#: Settings that decide which published numbers there are.
PUBLISHED_SIZE: dict[str, Any] = {"hidden_size": 600, "num_rims": 6, "k": 4}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def mnist(folder: Path, /, **settings: Any) -> SequentialMNISTExperiment:
    return SequentialMNISTExperiment(
        SequentialMNISTConfig(data_dir=str(folder), **{**TINY, **DATA, **settings})
    )


@pytest.mark.parametrize(("core", "order"), [(TWO_CORES[0], "pixel"), (TWO_CORES[1], "row")])
def test_run_that_is_broken_off_goes_on_exactly(
    digits: Path, tmp_path: Path, core: str, order: str
) -> None:
    results = assert_goes_on(lambda: mnist(digits, model=core, order=order), tmp_path, step=6)
    assert results.steps == 8  # 48 digits to train on, 5 of them for validation
    assert set(results.metrics) == {"accuracy_5", "accuracy_7"}


def test_each_size_is_also_judged_by_the_epoch_best_on_that_size(
    digits: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "model": "gru",
        "order": "row",
        "epochs": 6,
        "select_per_side": True,
    }
    experiment = mnist(digits, **settings)
    results = assert_goes_on(lambda: mnist(digits, **settings), tmp_path, step=6)
    assert set(results.metrics) == {row.key for row in experiment.rows}

    progress = {
        **{"validation_accuracy_5": [0.5, 0.75, 0.75], "accuracy_5": [0.9, 0.2, 0.3]},
        **{"validation_accuracy_7": [0.6, 0.1, 0.2], "accuracy_7": [0.4, 0.8, 0.7]},
    }
    assert experiment.test_of_progress(progress) == {
        "accuracy_5_selected": 0.2,
        "accuracy_7_selected": 0.4,
    }
    assert mnist(digits).test_of_progress(progress) == {}


@pytest.mark.parametrize(
    ("order", "shape"), [("pixel", (25, 10)), ("permuted", (25, 10)), ("row", (5, 10, 5))]
)
def test_batches_are_the_images_in_order(digits: Path, order: str, shape: tuple[int, ...]) -> None:
    experiment = mnist(digits, order=order)
    first, again = (next(iter(experiment.batches(2))) for _ in range(2))
    assert torch.equal(first.inputs, again.inputs)
    assert first.inputs.shape == shape
    assert not torch.equal(first.inputs, next(iter(experiment.batches(3))).inputs)
    # The bar of a digit is where its class says: so each label tells how its image looks.
    looks = {int(n): first.inputs[:, i] for i, n in enumerate(first.labels)}
    assert len(looks) > 4
    for i, label in enumerate(first.labels.tolist()):
        assert torch.equal(first.inputs[:, i], looks[label])


def test_permutation_is_the_same_for_all_runs(digits: Path) -> None:
    plain = next(iter(mnist(digits).batches(0))).inputs
    first = next(iter(mnist(digits, order="permuted").batches(0))).inputs
    assert not torch.equal(plain, first)
    assert torch.equal(plain.sum(0), first.sum(0))
    both = [mnist(digits, order="permuted", seed=seed) for seed in (0, 1)]
    some = both[0]._digits[0]
    batches = [one._batch(some, 7).inputs for one in both]
    assert torch.equal(*batches)


def test_accuracy_counts_the_digits_that_are_named_right(digits: Path) -> None:
    experiment = mnist(digits)
    labels = torch.from_numpy(experiment._split[1].labels)
    logits = one_hot(labels, 10).float()[None].repeat(2, 1, 1)
    logits[0] = 0.0  # only the last step counts
    logits[1, :3] = one_hot((labels[:3] + 1) % 10, 10)
    found = experiment.test(Told(logits))
    assert found == {"accuracy_5": 9 / 12, "accuracy_7": 9 / 12}


def test_digits_can_be_fewer_and_validation_ones_are_not_trained_on(digits: Path) -> None:
    experiment = mnist(digits, train_digits=20, test_digits=5, validation_share=0.25)
    train, validation = experiment._digits
    assert (len(train.labels), len(validation.labels)) == (15, 5)
    assert experiment.data_identity.startswith("20 and 5 samples, ")
    assert experiment.steps_per_epoch == 1
    assert "5 test digits" in experiment.notes[0]


def test_published_stand_beside_what_they_are_of(digits: Path) -> None:
    def means(**changes: Any) -> dict[str, list[float]]:
        published = mnist(digits, **{"train_side": 14, **PUBLISHED_SIZE, **changes}).published
        return {core: [n.mean for n in row.values()] for core, row in published.items()}

    lstm = [80.43, 39.74, 20.48]
    assert means() == {"rim_lstm": [87.89, 69.75, 46.23], "lstm": lstm}
    assert means(k=6)["rim_lstm"] == [80.31, 56.19, 37.45]
    for otherwise in ({"k": 3}, {"num_rims": 5}):
        assert means(**otherwise) == {"lstm": lstm}
    for size in ({"hidden_size": 60}, {"num_layers": 2}, {"order": "row"}, {"train_side": 5}):
        assert means(**size) == {}


def test_published_are_those_of_the_settings_of_each_core(digits: Path) -> None:
    task = TASKS["sequential-mnist"]
    rim = mnist(digits, train_side=14, **PUBLISHED_SIZE).config
    configs = [rim, replace(rim, model="lstm", hidden_size=700)]
    results = Results({"accuracy_16": 0.5}, 1, 1.0, 1, 1)
    runs = {
        config.model: [
            Finished(
                task=task,
                variant=config.model,
                config=config,
                folder=digits,
                results=results,
                curve={},
            )
        ]
        for config in configs
    }
    comparison = Comparison(
        task=task, experiment=task.make(rim), seeds=(0,), runs=runs, command="", flags=()
    )
    assert list(comparison.published) == ["rim_lstm"]


def test_learns_bars_row_by_row_and_knows_them_in_larger_images(
    digits: Path, tmp_path: Path
) -> None:
    settings = {**SMALL, "train_side": 14, "test_sides": "14,16", "epochs": 12, "batch_size": 10}
    results = fit(mnist(digits, model="gru", order="row", **settings), tmp_path)
    assert results.metrics["accuracy_14"] > 0.9
    assert results.metrics["accuracy_16"] > 0.5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--data-dir", "nowhere"), "nowhere must hold t10k"),
        (("--batch-size", "44"), "batch_size must be at most 43, the training images; got 44."),
        (("--train-digits", "1"), "fraction must leave both parts an image"),
        (("--test-sides", "14,x"), "--test-sides must be whole numbers from 1 to 1000"),
        (("--order", "rows"), "--order"),
    ],
)
def test_mistake_is_one_line_before_any_work(
    rims: Rims, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    write_digits(tmp_path / "here" / "data" / "mnist")
    before = tree(tmp_path)
    result = rims("experiment", "sequential-mnist", "--run-root", "root", *options)
    assert told in assert_one_line(result)
    assert tree(tmp_path) == before
