"""PPOConfig: every setting that cannot work is refused at construction, by name, in one line."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from agents.config import ActionMode, PPOConfig
from envs import SUITES
from lab.cores import CoreImportError, CoreName, import_core
from lab.settings import ConfigError

ENV = "MiniGrid-Empty-5x5-v0"

COUNTS = (
    "total_steps",
    "encoder_size",
    "hidden_size",
    "num_layers",
    "num_rims",
    "k",
    "num_input_heads",
    "input_key_size",
    "comm_key_size",
    "comm_value_size",
    "num_envs",
    "rollout_steps_per_env",
    "minibatches",
    "epochs",
    "threads",
    "checkpoint_every",
    "restart_envs_every",
)
#: Counts that may be zero.
FROM_ZERO = ("input_value_size", "num_comm_heads")
FRACTIONS = ("gamma", "gae_lambda", "tie_margin")
NOT_NEGATIVE = ("entropy_coefficient", "value_coefficient")
POSITIVE = ("learning_rate", "reward_scale", "clip_range", "max_grad_norm")
FLOATS = (*FRACTIONS, *NOT_NEGATIVE, *POSITIVE, "adam_epsilon")
FLAGS = (
    *("learned_initial_state", "use_inactive", "blocked_grad"),
    *("direction", "normalize_observations", "anneal_learning_rate", "bootstrap_truncated"),
)
TEXTS = (
    *("suite", "env", "core", "comm_reads", "encoder", "mission"),
    *("input_gate", "competition", "comm_update"),
    *("init_from", "backend", "device", "actions", "wrapper"),
)

OUT_OF_RANGE: list[tuple[str, Any]] = [
    *((name, value) for name in COUNTS for value in (0, -1, 2**40 + 1)),
    ("seed", -1),
    *((name, -1) for name in FROM_ZERO),
    *(("comm_gate_bias", value) for value in (-101.0, 101.0, math.nan, -math.inf)),
    ("seed", 2**31),
    *((name, value) for name in FLOATS for value in (-0.01, math.nan, math.inf, -math.inf)),
    *((name, 1.01) for name in FRACTIONS),
    *((name, 0.0) for name in POSITIVE),
    *((name, 1.1e6) for name in (*NOT_NEGATIVE, *POSITIVE)),
]
WRONG_TYPE: list[tuple[str, Any]] = [
    *((name, value) for name in (*COUNTS, *FROM_ZERO, "seed") for value in (1.0, "1", True, None)),
    *((name, value) for name in (*FLOATS, "comm_gate_bias") for value in ("0.5", True, None)),
    *((name, value) for name in FLAGS for value in (1, "true", None)),
    *((name, value) for name in TEXTS for value in (1, None, ["lstm"])),
]
WRONG_CHOICE = [
    ("core", "LSTM"),
    ("core", ""),
    ("encoder", "mlp"),
    ("comm_reads", "states"),
    ("input_gate", "one"),
    ("competition", "input"),
    ("comm_update", "mixed"),
    ("mission", "yes"),
    ("backend", "gym"),
]


def refusal(**settings: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        PPOConfig(**{"env": ENV, **settings})
    return caught.value


def assert_names_field(error: ConfigError, field: str) -> None:
    assert error.field == field
    assert str(error) == f"{field} {error.rule}"
    assert "\n" not in str(error)


def test_cases_cover_every_field() -> None:
    fields = {field.name for field in dataclasses.fields(PPOConfig)}
    assert fields == {*COUNTS, *FROM_ZERO, "seed", *FLOATS, "comm_gate_bias", *FLAGS, *TEXTS}


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
def test_value_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    error = refusal(**{field: value})
    assert_names_field(error, field)
    assert f"got {value}" in str(error)


@pytest.mark.parametrize(("field", "value"), WRONG_TYPE)
def test_value_of_wrong_type_is_refused_by_name(field: str, value: Any) -> None:
    error = refusal(**{field: value})
    assert_names_field(error, field)
    assert "type" in error.rule
    assert repr(value) in error.rule


@pytest.mark.parametrize(("field", "value"), WRONG_CHOICE)
def test_unknown_choice_is_refused_and_the_choices_named(field: str, value: str) -> None:
    error = refusal(**{field: value})
    assert_names_field(error, field)
    assert repr(value) in error.rule
    choices = ("auto", "rim_lstm", "linear", "candidate", "null", "additive")
    assert any(choice in error.rule for choice in choices)


@pytest.mark.parametrize("field", FLOATS)
def test_huge_integer_for_a_float_is_refused_by_name(field: str) -> None:
    assert_names_field(refusal(**{field: 10**400}), field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 1) for name in ("gamma", "gae_lambda")),
        *((name, 0) for name in (*FRACTIONS, *NOT_NEGATIVE)),
        *((name, 1e6) for name in (*NOT_NEGATIVE, *POSITIVE)),
        *((name, 5e-324) for name in POSITIVE),
        ("seed", 2**31 - 1),
        ("seed", 0),
        ("adam_epsilon", 1),
        ("total_steps", 2**40),
    ],
)
def test_ends_of_ranges_are_allowed(field: str, value: float) -> None:
    assert getattr(PPOConfig(**{"env": ENV, field: value}), field) == value  # type: ignore[arg-type]


def test_integer_for_a_float_is_stored_as_float() -> None:
    config = PPOConfig(env=ENV, gamma=1)
    assert type(config.gamma) is float
    assert config.gamma == 1.0


@pytest.mark.parametrize("task", [{}, {"suite": "doorkey", "env": ENV}])
def test_exactly_one_of_suite_and_env(task: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="suite and env: give exactly one") as caught:
        PPOConfig(**task)  # type: ignore[arg-type]
    assert_names_field(caught.value, "suite")


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ({"suite": "dorkey"}, "doorkey"),
        ({"env": "MiniGrid-Emtpy-5x5-v0"}, ENV),
        ({"env": "CartPoll-v1"}, "CartPole-v1"),
    ],
)
def test_unknown_task_is_refused_in_one_line(task: dict[str, str], hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as caught:
        PPOConfig(**task)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suite", SUITES)
def test_task_of_a_suite_is_its_training_task(suite: str) -> None:
    config = PPOConfig(suite=suite)
    assert config.task == SUITES[suite].train


def test_task_of_an_env_has_no_suite() -> None:
    config = PPOConfig(env="MiniGrid-DoorKey-8x8-v0")
    assert config.task.id == "MiniGrid-DoorKey-8x8-v0"


def test_minibatch_envs_is_the_share_of_each_minibatch() -> None:
    assert PPOConfig(env=ENV, num_envs=24, minibatches=3).minibatch_envs == 8
    assert PPOConfig(env=ENV, num_envs=24, minibatches=24).minibatch_envs == 1


@pytest.mark.parametrize(("num_envs", "minibatches"), [(10, 4), (4, 5), (7, 2)])
def test_minibatches_that_do_not_divide_are_refused(num_envs: int, minibatches: int) -> None:
    error = refusal(num_envs=num_envs, minibatches=minibatches)
    assert_names_field(error, "minibatches")
    assert str(num_envs) in error.rule
    assert f"got {minibatches}" in error.rule


@pytest.mark.parametrize("core", ["rim_lstm", "rim_gru"])
def test_mechanisms_are_checked_for_cores_that_have_them(core: CoreName) -> None:
    assert_names_field(refusal(core=core, hidden_size=30, num_rims=4), "hidden_size")
    error = refusal(core=core, num_rims=4, k=5)
    assert_names_field(error, "k")
    assert error.rule == "must be at most --num-rims 4; got 5."
    error = refusal(core=core, num_input_heads=3)
    assert_names_field(error, "num_input_heads")
    assert "the 128 features that a mechanism reads, four times its own; got 3" in error.rule
    error = refusal(core=core, num_input_heads=3, input_value_size=7)
    assert error.rule == "must divide --input-value-size 7; got 3."
    assert PPOConfig(env=ENV, core=core, num_input_heads=3, input_value_size=6).k == 3
    assert PPOConfig(env=ENV, core=core, hidden_size=30, num_rims=3, k=3).k == 3


@pytest.mark.parametrize("core", ["lstm", "gru", "none"])
def test_mechanisms_are_not_checked_for_other_cores(core: CoreName) -> None:
    config = PPOConfig(env=ENV, core=core, hidden_size=30, num_rims=4, k=9)
    assert (config.hidden_size, config.num_rims, config.k) == (30, 4, 9)


def test_is_frozen() -> None:
    config = PPOConfig(env=ENV)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


def test_takes_keywords_only() -> None:
    with pytest.raises(TypeError):
        PPOConfig("doorkey")  # type: ignore[call-arg,arg-type]


def test_every_field_has_help_and_a_group() -> None:
    for field in dataclasses.fields(PPOConfig):
        assert field.metadata["help"].endswith("."), field.name
        assert field.metadata["group"] in PPOConfig.groups


# Cores by import path ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("core", "close"), [("lsmt", "lstm"), ("rim-lstm", "rim_lstm"), ("transformer", None)]
)
def test_unknown_core_is_refused_with_all_that_is_possible(core: str, close: str | None) -> None:
    error = refusal(core=core)
    assert_names_field(error, "core")
    names = "rim_lstm, rim_gru, lstm, gru, none"
    assert error.rule.startswith(f"must be one of {names}, or package.module:Class; got {core!r}")
    assert error.rule.endswith(f"did you mean {close!r}?" if close else f"{core!r}.")


@pytest.mark.parametrize(
    "core",
    [":", "a:", ":A", "a:B:C", "../a:B", "a/b:C", "a.py:B", "a..b:C", ".a:B", "a:B.C", "a :B"],
)
def test_path_of_another_form_is_refused(core: str) -> None:
    error = refusal(core=core)
    assert_names_field(error, "core")
    if core == "a.py:B":  # has the form, but there is no such module
        assert isinstance(error, CoreImportError)
    else:
        assert error.rule == f"must have the form package.module:Class; got {core!r}."


_NO_CLASS = "has no class 'Mine' that derives from another, as torch.nn.Module"
_MINE = "class Mine(list):\n    pass\n"
MODULES = {
    "core_fine": ("from torch.nn import GRU\nclass Mine(GRU):\n    pass\n", ""),
    "core_list": (_MINE, "'Mine' is not a class that derives from torch.nn.Module"),
    "core_other": ("class Mine:\n    pass\n", _NO_CLASS),
    "core_function": ("def Mine(*sizes):\n    raise SystemExit\n", _NO_CLASS),
    "core_number": ("Mine = 3\n", _NO_CLASS),
    "core_computed": ("Mine = 1 + 2\n", "'Mine' is not a class that derives"),
    "core_elsewhere": ("class Yours:\n    pass\n", _NO_CLASS),
    "core_gone": (f"{_MINE}del Mine\n", "module 'core_gone' has no 'Mine'"),
    "core_typo": ("class Mine(\n", "SyntaxError: "),
    "core_needs": (
        f"import core_that_is_nowhere\n{_MINE}",
        "No module named 'core_that_is_nowhere'",
    ),
    "core_fails": (f"raise RuntimeError('two\\nlines.')\n{_MINE}", "RuntimeError: two lines."),
    "core_silent": (f"raise RuntimeError\n{_MINE}", ": RuntimeError."),
    "core_script": (f"import sys\nsys.exit(3)\n{_MINE}", "SystemExit: 3"),
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which holds MODULES and is not on sys.path."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name, (source, _) in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) not in sys.path
    return tmp_path


@pytest.mark.parametrize("name", [name for name in MODULES if name != "core_fine"])
def test_path_to_no_usable_class_is_refused_with_the_cause(modules: Path, name: str) -> None:
    before = list(sys.path)
    error = refusal(core=f"{name}:Mine")
    assert_names_field(error, "core")
    assert error.rule.startswith(f"'{name}:Mine' cannot be used: ")
    assert MODULES[name][1] in error.rule
    assert isinstance(error, CoreImportError)
    assert error.module == name
    assert sys.path == before


def test_path_is_found_in_the_current_directory(modules: Path) -> None:
    before = list(sys.path)
    config = PPOConfig(env=ENV, core="core_fine:Mine", hidden_size=30, num_rims=4)
    assert sys.path == before
    assert import_core(config.core).__module__ == "core_fine"
    assert PPOConfig(**dataclasses.asdict(config)) == config
    assert sys.modules["core_fine"].__file__ == str(modules / "core_fine.py")


def test_current_directory_comes_first(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / "other").mkdir()
    (modules / "other" / "core_fine.py").write_text("")
    monkeypatch.syspath_prepend(str(modules / "other"))
    assert import_core("core_fine:Mine").__name__ == "Mine"


def test_mechanisms_are_not_checked_for_a_path_that_sounds_like_them() -> None:
    class_path = "rims:RIM_GRU"
    assert PPOConfig(env=ENV, core=class_path, hidden_size=30, num_rims=4).core == class_path


@pytest.mark.parametrize(
    "text", ["", "jump", "left,left", "left;right", "all,left", "left,", "0,1"]
)
def test_actions_that_are_none_are_refused(text: str) -> None:
    error = refusal(actions=text)
    assert_names_field(error, "actions")
    assert error.rule == (
        "must be all or different names of left, right, forward, pickup, drop, toggle, done, "
        f"separated by commas; got {text!r}."
    )


def test_actions_are_kept_in_one_form() -> None:
    assert PPOConfig(env=ENV).actions == "all"
    assert PPOConfig(env=ENV, actions=" forward,left ").actions == "left,forward"


# Files ------------------------------------------------------------------------------------------

CHANGED = PPOConfig(
    suite="doorkey",
    core="gru",
    seed=7,
    total_steps=12_345,
    actions="left,forward",
    encoder="nfm",
    encoder_size=40,
    hidden_size=48,
    num_layers=2,
    num_rims=6,
    k=1,
    num_input_heads=2,
    input_key_size=8,
    input_value_size=10,
    input_gate="straight_through",
    competition="mechanisms",
    tie_margin=0.01,
    num_comm_heads=1,
    comm_key_size=4,
    comm_value_size=5,
    comm_reads="state",
    comm_update="convex",
    comm_gate_bias=-2.0,
    use_inactive=False,
    blocked_grad=True,
    learned_initial_state=False,
    direction=True,
    normalize_observations=True,
    wrapper="ActionBonus,gymnasium.wrappers:TimeAwareObservation",
    reward_scale=0.5,
    mission="off",
    init_from="/runs/{core}-seed{seed}",
    num_envs=12,
    rollout_steps_per_env=5,
    minibatches=3,
    epochs=1,
    adam_epsilon=1e-6,
    learning_rate=1.2345678901234567e-5,
    anneal_learning_rate=False,
    gamma=0.1 + 0.2,
    gae_lambda=0.0,
    bootstrap_truncated=False,
    clip_range=0.3,
    entropy_coefficient=0.0,
    value_coefficient=1 / 3,
    max_grad_norm=10,
    backend="gymnasium",
    threads=2,
    device="cuda:0",
    checkpoint_every=3,
    restart_envs_every=7,
)


def test_toml_round_trip_keeps_every_field(tmp_path: Path) -> None:
    default = PPOConfig(env=ENV)
    same = [
        field.name
        for field in dataclasses.fields(PPOConfig)
        if getattr(CHANGED, field.name) == getattr(default, field.name)
    ]
    assert same == []  # a field at its default would come back even if it were not written
    for config in (CHANGED, default):
        path = tmp_path / "config.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
        assert PPOConfig(**PPOConfig.read_some(path)) == config


def test_settings_of_a_file_may_be_few(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('core = "gru"\nseed = 3\n')
    assert PPOConfig.read_some(path) == {"core": "gru", "seed": 3}


def test_unknown_setting_is_refused_naming_file_and_likely_setting(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("num_env = 4\n")
    with pytest.raises(ValueError, match=r"'num_env'.*num_envs") as caught:
        PPOConfig.read_some(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"seed = ", id="malformed"),
        pytest.param(b"\xff\xfe", id="binary"),
        pytest.param(b"seed = 1\nseed = 2", id="twice"),
        pytest.param(b'[table]\ncore = "lstm"', id="table"),
        pytest.param(None, id="missing"),
    ],
)
def test_unreadable_settings_are_refused_in_one_line_naming_the_file(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.toml") as caught:
        PPOConfig.read_some(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_of_a_file_are_checked_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'env = "{ENV}"\ngamma = nan\n')
    with pytest.raises(ConfigError) as caught:
        PPOConfig(**PPOConfig.read_some(path))
    assert_names_field(caught.value, "gamma")


def test_action_modes_are_those_of_the_command_line() -> None:
    assert get_args(ActionMode) == ("sample", "greedy")
