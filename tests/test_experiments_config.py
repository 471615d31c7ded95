"""Settings of experiments: what is refused, and how they are saved and read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from experiment_cases import LineConfig
from experiments.configs.generated import SortOfClevrConfig, StackedMNISTConfig
from experiments.registry import TASKS
from lab.settings import ConfigError


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("epochs", 0, "must be at least 1; got 0."),
        ("epochs", 1.5, "must be of type int; got 1.5."),
        ("epochs", True, "must be of type int; got True."),
        ("seed", 2**31, "must be in [0, 2147483647]; got 2147483648."),
        ("learning_rate", 0.0, "must be above 0 and at most 1e+06; got 0.0."),
        ("learning_rate", float("nan"), "must be above 0 and at most 1e+06; got nan."),
        ("momentum", 1.5, "must be in [0, 1]; got 1.5."),
        ("optimizer", "adm", "must be one of adam, adamw, sgd; got 'adm'; did you mean 'adam'?"),
        ("model", "liner", "must be one of linear, mlp, broken; got 'liner'; did you mean"),
    ],
)
def test_value_that_cannot_be_is_refused(setting: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LineConfig(**{setting: value})
    assert caught.value.field == setting
    assert caught.value.rule.startswith(rule)


def test_whole_number_does_for_a_real_one() -> None:
    config = LineConfig(learning_rate=1)
    assert type(config.learning_rate) is float


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"digits": "1,x"}, "digits"),
        ({"digits": ""}, "digits"),
        ({"digits": "10"}, "digits"),
        ({"digits": "1,1"}, "digits"),
        ({"train_images": 64}, "train_images"),
        ({"out_kernel_size": 2}, "out_kernel_size"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StackedMNISTConfig(**settings)
    assert caught.value.field == field


def test_batch_of_more_images_than_there_are() -> None:
    with pytest.raises(ConfigError, match="batch_size must not be above the 10 training images"):
        SortOfClevrConfig(train_images=10)


@pytest.mark.parametrize("name", TASKS)
def test_saved_settings_are_read_back(tmp_path: Path, name: str) -> None:
    kind = TASKS[name].config
    config = kind(seed=3, epochs=7, model=TASKS[name].models[1])
    (tmp_path / "a.toml").write_text(config.to_toml())
    assert kind.read(tmp_path / "a.toml") == config
    assert kind.read_some(tmp_path / "a.toml") == asdict(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "holds an unknown setting 'epoch'; did you mean 'epochs'?"),
        ("task = 'stacked-mnist'", "is a configuration of 'stacked-mnist', not of 'line'."),
        ("epochs = ", "cannot be read as a configuration"),
        ("epochs = 0", "cannot be used: epochs must be at least 1; got 0."),
    ],
)
def test_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=r"\.toml") as caught:
        LineConfig.read(tmp_path / "a.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_differences_name_settings_with_an_effect() -> None:
    one, other = LineConfig(threads=2, epochs=3), LineConfig(threads=1, epochs=4)
    assert one.differences(other) == {"epochs": (3, 4)}
    assert "task" in one.differences(StackedMNISTConfig())


def test_order_of_digits_makes_no_difference() -> None:
    config = StackedMNISTConfig(digits="3,1")
    assert (config, config.counts) == (StackedMNISTConfig(digits="1,3"), (1, 3))


def test_settings_that_nothing_uses_make_no_difference() -> None:
    plain, other = SortOfClevrConfig(), SortOfClevrConfig(top_k=1, momentum=0.5)
    assert plain.differences(other) == {}
    with_nfm = SortOfClevrConfig(model="nfm"), SortOfClevrConfig(model="nfm", top_k=1)
    assert with_nfm[0].differences(with_nfm[1]) == {"top_k": (5, 1)}
    sgd = SortOfClevrConfig(optimizer="sgd"), SortOfClevrConfig(optimizer="sgd", momentum=0.5)
    assert sgd[0].differences(sgd[1]) == {"momentum": (0.9, 0.5)}
    assert "optimizer" in plain.differences(sgd[0])


def test_tasks_are_what_their_settings_say() -> None:
    for name, task in TASKS.items():
        assert task.name == task.config.task == name
        config = task.config()
        assert config.model in task.models
        assert type(task.make(config)).__module__.startswith("experiments.")
