"""The only home of hyperparameters: one frozen dataclass, which is also the command line."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import tomli_w

from envs import (
    BackendChoice,
    Suite,
    Task,
    action_names,
    get_suite,
    get_task,
    import_from_here,
    one_line,
    parse_actions,
    read_text,
)
from lab.core_source import may_define_class
from lab.own_modules import module_source
from lab.settings import ConfigError, did_you_mean

#: Cores that come with the agents; any other is given as ``package.module:Class``.
CoreName = Literal["rim_lstm", "rim_gru", "lstm", "gru", "none"]
CORE_NAMES: tuple[str, ...] = get_args(CoreName)
EncoderChoice = Literal["linear", "cnn", "nfm"]
MissionChoice = Literal["auto", "on", "off"]
ActionMode = Literal["sample", "greedy"]

#: Settings that change how long a run takes, not what comes out of it.
WITHOUT_EFFECT = ("checkpoint_every", "threads")


class CoreImportError(ConfigError):
    """A core's import path that leads to no usable class; ``module`` is what it should be in."""

    def __init__(self, core: str, module: str, cause: str) -> None:
        super().__init__("core", f"{core!r} cannot be used: {cause}.")
        self.module = module


class TaskChoiceError(ConfigError):
    """Neither or both of suite and env."""

    def __init__(self) -> None:
        super().__init__("suite", "and env: give exactly one of them to name the task to train on.")


def check_core(core: str) -> None:
    """See that there is a core of this name or import path.

    Raises:
        ConfigError: in one line, if there is not.
    """
    if ":" in core:
        import_core(core)
    elif core not in CORE_NAMES:
        hint = did_you_mean(core, CORE_NAMES)
        names = ", ".join(CORE_NAMES)
        rule = f"must be one of {names}, or package.module:Class; got {core!r}{hint}"
        raise ConfigError("core", rule)


def import_core(path: str) -> type[Any]:
    """The class that ``package.module:Class`` names; its module is imported.

    Modules are looked for in the current directory first, as ``python -m`` does. Nothing but a
    subclass of ``torch.nn.Module`` is let through: a checkpoint holds such a path too, and must not
    get any other function called. For the same reason a module whose source cannot define such a
    class is not even imported.

    Raises:
        ConfigError: in one line, for a path of another form.
        CoreImportError: in one line, if there is no such module or class, or it is no subclass of
            ``torch.nn.Module``.

    Example:
        >>> import_core("torch.nn:GRU").__name__
        'GRU'
    """
    module_name, _, class_name = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise ConfigError("core", f"must have the form package.module:Class; got {path!r}.")
    source = None if module_name in sys.modules else module_source(module_name)
    if source is not None and not may_define_class(source, class_name):
        cause = f"module {module_name!r} has no class {class_name!r} that derives from another"
        raise CoreImportError(path, module_name, f"{cause}, as torch.nn.Module")
    try:
        module = import_from_here(module_name)
    except (Exception, SystemExit) as error:  # it is the user's code: anything can happen in it
        raise CoreImportError(path, module_name, one_line(error)) from error
    if not hasattr(module, class_name):
        cause = f"module {module_name!r} has no {class_name!r}"
        raise CoreImportError(path, module_name, cause)
    found = getattr(module, class_name)
    from torch import nn  # here, because reading a configuration must not take seconds

    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        cause = f"{class_name!r} is no class that derives from torch.nn.Module"
        raise CoreImportError(path, module_name, cause)
    return found


def core_label(core: str) -> str:
    """What a core is called in tables and titles.

    Example:
        >>> core_label("package.module:MyLSTM"), core_label("lstm")
        ('MyLSTM', 'lstm')
    """
    return core.rpartition(":")[2]


def folder_name(core: str) -> str:
    """A core's name as part of the name of a file or folder.

    Example:
        >>> folder_name("package.module:MyLSTM"), folder_name("lstm")
        ('package.module.MyLSTM', 'lstm')
    """
    return core.replace(":", ".")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file such as a run's ``config.toml``; values are not checked yet.

    Raises:
        ValueError: if it cannot be read or holds a setting there is not.
    """
    try:
        values = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a configuration: {error}.") from None
    known = [field.name for field in dataclasses.fields(PPOConfig)]
    for name in values:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"{str(path)!r} holds an unknown setting {name!r}{hint}")
    return values


def preset_settings(suite: Suite) -> dict[str, Any]:
    """The settings a suite overrides; their values are not checked yet.

    Raises:
        ValueError: if one is no setting, or one that a suite cannot decide.
    """
    known = [f.name for f in dataclasses.fields(PPOConfig) if f.name not in NOT_OF_A_PRESET]
    for name in suite.preset:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"the preset of suite {suite.name!r} cannot set {name!r}{hint}")
    return dict(suite.preset)


#: What is trained, not how.
NOT_OF_A_PRESET = ("suite", "env", "core", "seed", "init_from")

#: Headings under which the options stand in the help of the command line, in this order.
Group = Literal["Task", "Network", "Learning", "Machine"]


def _option(default: Any, group: Group, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"group": group, "help": help})


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Everything that decides how an agent is trained. Saved as ``config.toml`` with each run.

    Exactly one of ``suite`` and ``env`` names the training task. Counts called ``*_steps`` are
    steps of single environments, summed over all of them unless the name says ``per_env``.

    Raises:
        ConfigError: at construction, for any value that cannot work; it names the field.
        ValueError: for an unknown suite or environment.

    Example:
        >>> config = PPOConfig(env="MiniGrid-DoorKey-5x5-v0", core="lstm")
        >>> config.minibatch_envs, config.task.name
        (16, 'DoorKey-5x5')
    """

    suite: str = _option("", "Task", "Suite whose training task to train on; see 'rims suites'.")
    env: str = _option(
        "",
        "Task",
        "Environment id to train on, instead of a suite; module:Id for one that a module of yours "
        "registers.",
    )
    core: str = _option(
        "rim_lstm",
        "Network",
        "Recurrent core; 'none' is a memoryless control. A class of your own is given by its "
        "import path; it is made and called as nn.LSTM is.",
    )
    seed: int = _option(0, "Task", "Seed of the run: weights, actions and levels derive from it.")
    total_steps: int = _option(200_000, "Task", "Environment steps to train for.")

    encoder: EncoderChoice = _option(
        "linear",
        "Network",
        "What the view goes through: one linear layer; convolutions first; these with NFM.",
    )
    encoder_size: int = _option(128, "Network", "Features the core reads: the encoder's output.")
    hidden_size: int = _option(
        128, "Network", "Features of the core's output: the total over mechanisms."
    )
    num_rims: int = _option(4, "Network", "RIM cores: number of mechanisms; divides --hidden-size.")
    k: int = _option(3, "Network", "RIM cores: mechanisms active at each step.")
    learned_initial_state: bool = _option(
        True, "Network", "Let episodes start from a learned state instead of zeros."
    )
    direction: bool = _option(
        False, "Network", "Let the policy see the compass direction of the agent."
    )
    mission: MissionChoice = _option(
        "auto",
        "Network",
        "Let the policy read the mission text; auto: where it differs between levels.",
    )
    actions: str = _option(
        "all",
        "Network",
        "Actions the policy chooses from: all that the task has, or some of left, right, forward, "
        "pickup, drop, toggle, done, separated by commas.",
    )

    init_from: str = _option(
        "",
        "Learning",
        "Run folder whose agent to begin with, as it was last saved; {core} and {seed} in it stand "
        "for those of this run.",
    )
    num_envs: int = _option(64, "Learning", "Environments stepped together.")
    rollout_steps_per_env: int = _option(
        32, "Learning", "Steps per environment between two updates."
    )
    minibatches: int = _option(
        4, "Learning", "Minibatches per epoch, cut over environments, never over time."
    )
    epochs: int = _option(4, "Learning", "Passes over each rollout.")
    learning_rate: float = _option(1e-3, "Learning", "Adam step size at the start.")
    adam_epsilon: float = _option(1e-5, "Learning", "Keeps Adam's division from that by zero.")
    anneal_learning_rate: bool = _option(
        True, "Learning", "Let the step size fall linearly to zero."
    )
    gamma: float = _option(0.99, "Learning", "Discount per step.")
    gae_lambda: float = _option(0.95, "Learning", "Decay of generalized advantage estimation.")
    bootstrap_truncated: bool = _option(
        True,
        "Learning",
        "Episodes cut by the step limit count the value of their last observation.",
    )
    clip_range: float = _option(0.2, "Learning", "Clipping of the probability ratio.")
    entropy_coefficient: float = _option(0.01, "Learning", "Weight of the entropy bonus.")
    value_coefficient: float = _option(0.5, "Learning", "Weight of the value loss.")
    max_grad_norm: float = _option(0.5, "Learning", "Gradients are scaled down to this norm.")
    restart_envs_every: int = _option(
        100,
        "Learning",
        "Updates after which all environments are made anew; a resumed run replays at most these.",
    )

    backend: BackendChoice = _option("auto", "Machine", "auto: EnvPool where it runs the task.")
    threads: int = _option(
        1, "Machine", "CPU threads of torch, and of EnvPool; more rarely helps networks this small."
    )
    device: str = _option("cpu", "Machine", "Torch device of the policy, such as cpu or cuda.")
    checkpoint_every: int = _option(20, "Machine", "Updates between two checkpoints.")

    def __post_init__(self) -> None:
        self._check_types()
        if bool(self.suite) == bool(self.env):
            raise TaskChoiceError
        if self.suite.endswith(".toml"):  # the run may be looked at from another folder
            object.__setattr__(self, "suite", os.path.realpath(self.suite))
        if self.init_from:
            object.__setattr__(self, "init_from", os.path.realpath(self.init_from))
        self.task  # noqa: B018  (raises for an unknown suite or environment)
        self._check_actions()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                rule = f"must be one of {', '.join(choices)}; got {getattr(self, name)!r}."
                raise ConfigError(name, rule)
        for name, (low, high, rule) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also false for NaN
                raise ConfigError(name, f"must be {rule}; got {value}.")
        if self.num_envs % self.minibatches:
            rule = f"must divide the {self.num_envs} environments; got {self.minibatches}."
            raise ConfigError("minibatches", rule)
        if self.core in ("rim_lstm", "rim_gru"):
            self._check_mechanisms()
        check_core(self.core)  # last: it may import somebody's module

    def _check_actions(self) -> None:
        try:
            chosen = self.action_numbers
        except ValueError as error:
            raise ConfigError("actions", str(error)) from None
        names = ["all"] if chosen is None else action_names(chosen)
        object.__setattr__(self, "actions", ",".join(names))

    def _check_mechanisms(self) -> None:
        if self.hidden_size % self.num_rims:
            raise ConfigError(
                "hidden_size",
                f"must be a multiple of the {self.num_rims} mechanisms; got {self.hidden_size}.",
            )
        if self.k > self.num_rims:
            raise ConfigError(
                "k",
                f"must lie in [1, {self.num_rims}], the number of mechanisms; got {self.k}. "
                "It counts the mechanisms active at each step.",
            )

    @property
    def task(self) -> Task:
        """The task trained on."""
        return get_suite(self.suite).train if self.suite else get_task(self.env)

    @property
    def action_numbers(self) -> tuple[int, ...] | None:
        """The numbers of the actions to choose from; None for all that a task has."""
        return parse_actions(self.actions)

    @property
    def parts(self) -> tuple[str, ...]:
        """What an observation must hold besides the view."""
        return ("direction",) * self.direction + ("mission",) * (self.mission == "on")

    @property
    def minibatch_envs(self) -> int:
        """Environments in one minibatch."""
        return self.num_envs // self.minibatches

    def to_toml(self) -> str:
        """All fields as TOML."""
        return tomli_w.dumps(dataclasses.asdict(self))

    def _check_types(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            expected, value = hints[field.name], getattr(self, field.name)
            kind: type = str if get_args(expected) else expected
            if kind is float and type(value) is int and abs(value) < 2**53:
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not kind:
                raise ConfigError(field.name, f"must be of type {kind.__name__}; got {value!r}.")


_CHOICES: dict[str, tuple[str, ...]] = {
    "encoder": get_args(EncoderChoice),
    "mission": get_args(MissionChoice),
    "backend": get_args(BackendChoice),
}

_COUNT = (1, 2**40, "in [1, 2**40]")
_FRACTION = (0.0, 1.0, "in [0, 1]")
_NOT_NEGATIVE = (0.0, 1e6, "in [0, 1e6]")
_POSITIVE = (math.ulp(0.0), 1e6, "above 0 and at most 1e6")
_RANGES: dict[str, tuple[float, float, str]] = {
    "seed": (0, 2**31 - 1, "in [0, 2**31)"),
    "threads": (1, 1024, "in [1, 1024]"),
    "adam_epsilon": (math.ulp(0.0), 1.0, "above 0 and at most 1"),
    **dict.fromkeys(
        (
            "total_steps",
            "encoder_size",
            "hidden_size",
            "num_rims",
            "k",
            "rollout_steps_per_env",
            "minibatches",
            "epochs",
            "checkpoint_every",
            "restart_envs_every",
        ),
        _COUNT,
    ),
    # All of them stand in memory at once.
    "num_envs": (1, 2**16, "in [1, 65536]"),
    **dict.fromkeys(("gamma", "gae_lambda"), _FRACTION),
    **dict.fromkeys(("entropy_coefficient", "value_coefficient"), _NOT_NEGATIVE),
    **dict.fromkeys(("learning_rate", "clip_range", "max_grad_norm"), _POSITIVE),
}
