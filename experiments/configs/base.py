"""Settings that all experiments share, and those of models with NFM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import tomli_w

from lab.settings import TINY, ConfigError, Settings, option

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "linear", "cosine", "steps"]
TopKRule = Literal["softmax", "threshold"]
Rescale = Literal["space_to_depth", "nearest"]

#: The model with NFM, of every task that has one.
NFM_MODEL = "nfm"


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(Settings):
    """Settings of every experiment. A task adds its own settings in a subclass.

    ``model`` has to be given a type in the subclass: ``Literal`` of the models there are.

    Raises:
        ConfigError: at construction, for any value that cannot work; it names the field.
    """

    #: The task, as the command line calls it.
    task: ClassVar[str] = ""

    groups: ClassVar[tuple[str, ...]] = ("Data", "Network", "NFM", "RIM", "Training", "Machine")

    model: str = option("", "Network", "The network that is trained.")
    seed: int = option(
        0, "Training", "Decides weights, order of the data and all draws.", low=0, high=2**31 - 1
    )
    epochs: int = option(20, "Training", "Passes over the training data.", low=1)
    batch_size: int = option(64, "Training", "Samples per step.", low=1)
    optimizer: Optimizer = option("adam", "Training", "Optimiser.")
    learning_rate: float = option(1e-3, "Training", "Step size at the start.", low=TINY, high=1e6)
    weight_decay: float = option(
        0.0, "Training", "Weight decay: pull of all weights towards zero.", low=0, high=1e6
    )
    momentum: float = option(
        0.9, "Training", "sgd: share of the last step that is kept.", low=0, high=1
    )
    schedule: Schedule = option(
        "constant",
        "Training",
        "Step size: constant; linear or cosine to zero; steps: divided by ten three times.",
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
        "Evaluations without improvement after which training ends early; 0: never.",
        low=0,
    )
    bf16: bool = option(
        False, "Training", "Compute products in bfloat16 where torch's autocast does (GPUs)."
    )
    checkpoint_every: int = option(
        500,
        "Machine",
        "Steps between two checkpoints, from which a run can go on.",
        low=1,
        has_effect=False,
    )
    threads: int = option(
        1, "Machine", "CPU threads of torch per run.", low=1, high=1024, has_effect=False
    )
    device: str = option("cpu", "Machine", "Torch device, such as cpu or cuda.", has_effect=False)

    @property
    def unused(self) -> Mapping[str, str]:
        """Settings that do nothing in this run because of others, with what they need."""
        if self.optimizer == "sgd":
            return super().unused
        why = f"is used by sgd alone; the optimizer is {self.optimizer}"
        return {**super().unused, "momentum": why}

    def to_toml(self) -> str:
        """The task and all settings as TOML."""
        return tomli_w.dumps({"task": self.task}) + super().to_toml()

    @classmethod
    def _of_file(cls, path: Path, values: dict[str, Any]) -> dict[str, Any]:
        task = values.pop("task", cls.task)
        if task != cls.task:
            raise ValueError(f"{str(path)!r} is a configuration of {task!r}, not of {cls.task!r}.")
        return values

    def settings_with_effect(self) -> dict[str, Any]:
        """Settings that decide the numbers of a run, the task among them."""
        ignored = {*self.without_effect(), *self.unused}
        mine = {n: v for n, v in dataclasses.asdict(self).items() if n not in ignored}
        return {"task": self.task, **mine}

    def differences(self, other: Settings) -> dict[str, tuple[Any, Any]]:
        """Settings with an effect that differ, or the task: here and in ``other``, by name."""
        theirs = getattr(other, "task", None)
        if self.task != theirs:
            return {"task": (self.task, theirs)}
        return super().differences(other)


@dataclass(frozen=True, kw_only=True)
class DigitsConfig(ExperimentConfig):
    """Adds where the digits of MNIST are, and how many of them are held out."""

    data_dir: str = option(
        "data/mnist",
        "Data",
        "Folder with the idx files of MNIST, or the t10k ones alone.",
        has_effect=False,
    )
    download: bool = option(False, "Data", "Fetch files that are missing there.", has_effect=False)
    validation_share: float = option(
        0.1, "Data", "Share of the training digits kept for validation.", low=0.001, high=0.9
    )


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
        True, "NFM", "Read in the first pass too; otherwise the first pass only writes."
    )
    top_k: int = option(5, "NFM", "Memory entries that a head reads at each point; 0: all.", low=0)
    topk_rule: TopKRule = option(
        "softmax", "NFM", "softmax over the largest scores (paper) or threshold (authors' code)."
    )
    rescale: Rescale = option(
        "space_to_depth",
        "NFM",
        "How smaller maps read larger ones; larger ones read smaller ones by nearest.",
    )
    null_slot: bool = option(True, "NFM", "Let a head read nothing, by an entry of zeros.")
    key_size: int = option(32, "NFM", "Features of a query or key, per head.", low=1)
    value_size: int = option(32, "NFM", "Features of a value, per head.", low=1)
    num_heads: int = option(4, "NFM", "Heads of each module.", low=1)
    out_kernel_size: int = option(
        3,
        "NFM",
        "Kernel size of the two convolutions after reading; odd (paper: 1).",
        low=1,
        high=99,
    )
    batch_norm: bool = option(True, "NFM", "Batch normalisation between these two convolutions.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out_kernel_size % 2 == 0:
            raise ConfigError("out_kernel_size", f"must be odd; got {self.out_kernel_size}.")

    @property
    def unused(self) -> Mapping[str, str]:
        """Adds settings of NFM, where the model has none."""
        if self.model == NFM_MODEL:
            return super().unused
        own = (f.name for f in dataclasses.fields(self) if f.metadata["group"] == "NFM")
        return {**super().unused, **dict.fromkeys(own, "needs a model with NFM")}
