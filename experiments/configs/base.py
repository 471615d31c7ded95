"""Settings of experiments: frozen dataclasses, which are also the command line and TOML files."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

import tomli_w

from envs import read_text
from lab.settings import ConfigError, did_you_mean

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "linear", "cosine", "steps"]
TopKRule = Literal["softmax", "threshold"]
Rescale = Literal["space_to_depth", "nearest"]

#: Settings that change how long a run takes, or where it computes, not what it computes.
WITHOUT_EFFECT = ("threads", "device", "checkpoint_every", "data_dir", "download", "text_file")

#: Headings under which the options stand in the help of the command line, in this order.
GROUPS = ("Data", "Network", "NFM", "RIM", "Training", "Machine")

#: The model with NFM, of every task that has one.
NFM_MODEL = "nfm"

_MOST = 2**40
_TINY = math.ulp(0.0)

Config = TypeVar("Config", bound="ExperimentConfig")


def option(
    default: Any,
    group: str,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    metavar: str | None = None,
) -> Any:
    """A field of a configuration, which is also an option of the command line.

    Args:
        default: its value unless given; its type is that of the field.
        group: the heading it stands under in the help.
        help: one sentence.
        low: smallest value of a number.
        high: largest value of a number.
        metavar: what stands for the value in the help, instead of N, X or NAME.
    """
    metadata = {"group": group, "help": help, "low": low, "high": high, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def changed(base: type[ExperimentConfig], name: str, default: Any) -> Any:
    """The field ``name`` of ``base`` with another default, for a task that differs only in it."""
    (found,) = (field for field in dataclasses.fields(base) if field.name == name)
    return dataclasses.field(default=default, metadata=found.metadata)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """What every experiment needs to be told. A task adds its own settings in a subclass.

    ``model`` has to be given a type in the subclass: ``Literal`` of the models there are.

    Raises:
        ConfigError: at construction, for any value that cannot work; it names the field.
    """

    #: The task, as the command line calls it.
    task: ClassVar[str] = ""

    model: str = option("", "Network", "The network that is trained.")
    seed: int = option(
        0, "Training", "Decides weights, order of the data and all draws.", low=0, high=2**31 - 1
    )
    epochs: int = option(20, "Training", "Passes over the training data.", low=1, high=_MOST)
    batch_size: int = option(64, "Training", "Samples per step.", low=1, high=_MOST)
    optimizer: Optimizer = option("adam", "Training", "How steps are made of gradients.")
    learning_rate: float = option(1e-3, "Training", "Step size at the start.", low=_TINY, high=1e6)
    weight_decay: float = option(0.0, "Training", "Pull of all weights to zero.", low=0, high=1e6)
    momentum: float = option(0.9, "Training", "Of sgd: share of the last step kept.", low=0, high=1)
    schedule: Schedule = option(
        "constant",
        "Training",
        "How the step size falls: not, to zero by the end, or to a tenth three times.",
    )
    max_grad_norm: float = option(
        0.0, "Training", "Gradients are scaled down to this norm; 0: never.", low=0, high=1e6
    )
    evaluate_every: int = option(
        1, "Training", "Epochs between two evaluations, each a row of progress.csv.", low=1
    )
    patience: int = option(
        0,
        "Training",
        "Evaluations without a better one after which training ends; 0: never before --epochs.",
        low=0,
    )
    bf16: bool = option(
        False, "Training", "Compute products in bfloat16 where torch's autocast does (GPUs)."
    )
    checkpoint_every: int = option(
        500, "Machine", "Steps between two checkpoints, from which a run can go on.", low=1
    )
    threads: int = option(1, "Machine", "CPU threads of torch per run.", low=1, high=1024)
    device: str = option("cpu", "Machine", "Torch device, such as cpu or cuda.")

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            self._check_type(field.name, hints[field.name])
            self._check_value(field, get_args(hints[field.name]))

    def _check_type(self, name: str, hint: Any) -> None:
        value = getattr(self, name)
        kind: type = str if get_args(hint) else hint
        if kind is float and type(value) is int and abs(value) < 2**53:
            object.__setattr__(self, name, float(value))
        elif type(value) is not kind:
            raise ConfigError(name, f"must be of type {kind.__name__}; got {value!r}.")

    def _check_value(self, field: dataclasses.Field[Any], choices: tuple[str, ...]) -> None:
        name, value = field.name, getattr(self, field.name)
        if choices and value not in choices:
            hint = did_you_mean(value, choices)
            raise ConfigError(name, f"must be one of {', '.join(choices)}; got {value!r}{hint}")
        if isinstance(value, int | float):
            low, high = field.metadata["low"], field.metadata["high"]
            if type(value) is int:  # numbers without an end would fit no tensor and no file
                high = min(high, _MOST)
            if not low <= value <= high or abs(value) == math.inf:  # the first is false for NaN
                raise ConfigError(name, f"must be {_range(low, high, value)}; got {value}.")

    @property
    def unused(self) -> frozenset[str]:
        """Settings that do nothing in this run, because of others."""
        return frozenset() if self.optimizer == "sgd" else frozenset({"momentum"})

    def why_unused(self, name: str) -> str:
        """Why a setting of :attr:`unused` that no other model would use either does nothing."""
        assert name == "momentum"
        return f"is used by sgd alone; the optimizer is {self.optimizer}"

    def to_toml(self) -> str:
        """The task and all fields as TOML."""
        return tomli_w.dumps({"task": self.task, **dataclasses.asdict(self)})

    def settings_with_effect(self) -> dict[str, Any]:
        """Settings that decide the numbers of a run, the task among them."""
        ignored = {*WITHOUT_EFFECT, *self.unused}
        mine = {n: v for n, v in dataclasses.asdict(self).items() if n not in ignored}
        return {"task": self.task, **mine}

    def differences(self, other: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
        """Settings with an effect that differ: here and in ``other``, by name."""
        mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
        if self.task != other.task:
            return {"task": (self.task, other.task)}
        ignored = {*WITHOUT_EFFECT, *(self.unused & other.unused)}
        return {
            name: (value, others[name])
            for name, value in mine.items()
            if name not in ignored and value != others[name]
        }


@dataclass(frozen=True, kw_only=True)
class NFMConfig(ExperimentConfig):
    """Adds what a Neural Function Module can be given, the ablations of arXiv:2010.08012 among it.

    They are used by the models that have such modules.
    """

    passes: int = option(2, "NFM", "Passes over the network.", low=1, high=64)
    share_parameters: bool = option(
        False, "NFM", "Let all passes use the same parameters instead of their own."
    )
    first_pass_reads: bool = option(
        True, "NFM", "Read in the first pass too; else it only writes what later ones read."
    )
    top_k: int = option(
        5, "NFM", "Entries of the memory that a head reads at a point; 0: all.", low=0, high=_MOST
    )
    topk_rule: TopKRule = option(
        "softmax", "NFM", "softmax over the largest scores (paper) or threshold (authors' code)."
    )
    rescale: Rescale = option(
        "space_to_depth", "NFM", "How larger maps are read by smaller ones; smaller ones: nearest."
    )
    null_slot: bool = option(True, "NFM", "Let a head read nothing: an entry of zeros.")
    key_size: int = option(32, "NFM", "Features of a query or key, per head.", low=1, high=_MOST)
    value_size: int = option(32, "NFM", "Features of a value, per head.", low=1, high=_MOST)
    num_heads: int = option(4, "NFM", "Heads of each module.", low=1, high=_MOST)
    out_kernel_size: int = option(
        3, "NFM", "Of the two convolutions after reading; odd. The paper's are 1.", low=1, high=99
    )
    batch_norm: bool = option(True, "NFM", "Normalise between these two convolutions.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out_kernel_size % 2 == 0:
            raise ConfigError("out_kernel_size", f"must be odd; got {self.out_kernel_size}.")

    @property
    def unused(self) -> frozenset[str]:
        """Those of NFM too, where the model has none."""
        own = (field.name for field in dataclasses.fields(self) if field.metadata["group"] == "NFM")
        return super().unused.union(() if self.model == NFM_MODEL else own)


def read_settings(path: Path, kind: type[ExperimentConfig]) -> dict[str, Any]:
    """The settings in a ``config.toml`` of a task; values are not checked yet.

    Args:
        path: the file.
        kind: the configuration of the task.

    Raises:
        ValueError: in one line, if it cannot be read, is of another task or holds a setting there
            is not.
    """
    try:
        values = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a configuration: {error}.") from None
    task = values.pop("task", kind.task)
    if task != kind.task:
        raise ValueError(f"{str(path)!r} is a configuration of {task!r}, not of {kind.task!r}.")
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"{str(path)!r} holds an unknown setting {name!r}{hint}")
    return values


def read_config(path: Path, kind: type[Config]) -> Config:
    """The configuration in a run's ``config.toml``.

    Raises:
        ValueError: as :func:`read_settings`, and for a value that cannot be.
    """
    settings = read_settings(path, kind)
    try:
        return kind(**settings)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} cannot be used: {error}") from None


def _range(low: float, high: float, got: float) -> str:
    if low == _TINY:
        return f"above 0 and at most {high:g}"
    if high in (_MOST, math.inf):
        return "at most 2**40" if got > _MOST else f"at least {low:g}"
    return f"in [{low:g}, {high:.10g}]"
