"""The tasks of ``rims experiment``: their settings, and where what they compute is.

How a task is added:

1. Here, a subclass of :class:`~experiments.config.ExperimentConfig` (of
   :class:`~experiments.config.NFMConfig` if one of its models has NFM): ``task``, its name on the
   command line; ``model: Literal[...]``, the models there are; a field made by ``option`` for every
   setting of its own, and by ``changed`` for every common one with another default. What depends
   on several fields is checked in ``__post_init__``.
2. A row of :data:`TASKS`.
3. The file that the row names, with a subclass of :class:`~experiments.experiment.Experiment`:
   ``make_model``, ``steps_per_epoch``, ``batches``, ``loss``, ``evaluate``, ``rows``; ``test``,
   ``selection``, ``published``, ``curves``, ``notes`` and ``check`` where the defaults do not do;
   ``data_identity``, if it reads files; what the row's ``shows`` name.
   A task with several optimisers gives ``make_optimizers`` and ``train_step``.

A task that compares recurrent cores takes :class:`~experiments.sequence_configs.SequenceConfig` and
:class:`~experiments.sequences.SequenceExperiment` instead; ``model`` is then the core.

Command, options, help, run folders, checkpoints, seeds, tables and figures follow from these.
Nothing in here may import torch, so that help pages and mistakes are answered at once.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args, get_type_hints

from agents.config import ConfigError
from experiments.config import NFM_MODEL, ExperimentConfig, NFMConfig, changed, option
from experiments.image_configs import ClassifyConfig, GANConfig, VAEConfig
from experiments.sequence_configs import (
    CORES,
    RIM_CORES,
    AddingConfig,
    BouncingBallsConfig,
    CopyingConfig,
    LanguageModelConfig,
    SequentialMNISTConfig,
)

if TYPE_CHECKING:
    from experiments.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class SortOfClevrConfig(NFMConfig):
    """Settings of Sort-of-CLEVR; defaults as in arXiv:2010.08012, appendix D."""

    task: ClassVar[str] = "sort-of-clevr"

    model: Literal["cnn", "nfm", "rn"] = option(
        "cnn", "Network", "CNN with MLP, the same with NFM, or a Relation Network."
    )
    channels: int = option(24, "Network", "Of each convolution.", low=1)
    hidden_size: int = option(256, "Network", "Of the layers after the convolutions.", low=1)
    held_out: int = option(
        0,
        "Data",
        "Combinations of colour and shape that training never shows; the seed decides which.",
        low=0,
        high=6,
    )
    train_images: int = option(9800, "Data", "Images trained on, 20 questions each.", low=1)
    validation_images: int = option(1000, "Data", "Images judged on while training.", low=1)
    test_images: int = option(2000, "Data", "Images judged on in the end.", low=1)
    questions: int = option(
        20, "Training", "Questions drawn per image and step; 20: all.", low=1, high=20
    )
    epochs: int = changed(ExperimentConfig, "epochs", 250)
    key_size: int = changed(NFMConfig, "key_size", 16)
    value_size: int = changed(NFMConfig, "value_size", 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size > self.train_images:
            rule = f"must not be above the {self.train_images} training images"
            raise ConfigError("batch_size", f"{rule}; got {self.batch_size}.")


@dataclass(frozen=True, kw_only=True)
class StackedMNISTConfig(NFMConfig):
    """Settings of stacked MNIST; defaults as in arXiv:2010.08012, section 4.2 and appendix C."""

    task: ClassVar[str] = "stacked-mnist"

    model: Literal["cnn", "nfm"] = option(
        "cnn", "Network", "Nine convolutions, or the same with NFM."
    )
    width: int = option(
        32, "Network", "Channels of the first convolution; they double four times.", low=1
    )
    pool: Literal["mean", "none"] = option(
        "mean", "Network", "What of the last map is classified: its mean, or all of it."
    )
    data_dir: str = option(
        "data/mnist", "Data", "Folder with the idx files of MNIST, or the t10k ones alone."
    )
    download: bool = option(False, "Data", "Fetch files that are missing there.")
    digits: str = option(
        "1,3", "Data", "Numbers of digits per image in training, such as 1,3 or 1,5."
    )
    train_images: int = option(20_000, "Data", "Images per epoch; they are new in each.", low=1)
    validation_images: int = option(
        1000, "Data", "Images per number of digits to choose the best epoch by.", low=1
    )
    validation_share: float = option(
        0.1, "Data", "Of the training digits, kept for validation.", low=0.001, high=0.9
    )
    test_images: int = option(2000, "Data", "Images per number of digits in the end.", low=1)
    epochs: int = changed(ExperimentConfig, "epochs", 300)
    key_size: int = changed(NFMConfig, "key_size", 16)
    value_size: int = changed(NFMConfig, "value_size", 16)
    batch_norm: bool = changed(NFMConfig, "batch_norm", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = sorted(self.digits.split(","))
        if not all(count in "123456789" and len(count) == 1 for count in counts):
            rule = "must be numbers from 1 to 9 with commas between them"
            raise ConfigError("digits", f"{rule}, such as 1,3; got {self.digits!r}.")
        if len(set(counts)) < len(counts):
            raise ConfigError("digits", f"must name each number once; got {self.digits!r}.")
        object.__setattr__(self, "digits", ",".join(counts))  # 3,1 trains what 1,3 does
        if self.steps_per_epoch < len(counts):
            rule = f"must give each of the numbers of digits {self.digits} a batch"
            raise ConfigError("train_images", f"{rule}; got {self.train_images}.")

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of digits in training images."""
        return tuple(int(count) for count in self.digits.split(","))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; images that would not fill one are left out."""
        return self.train_images // self.batch_size


class Compared(NamedTuple):
    """What the runs of a task differ in, the setting ``model``, as users call it."""

    option: str
    one: str
    many: str


MODELS = Compared("--model", "model", "models")
COMPARED_CORES = Compared("--cores", "core", "cores")

_FIGURES = (".png", ".svg", ".pdf")


class Show(NamedTuple):
    """A picture of trained models, drawn by a command that is asked for it: ``--show-NAME``."""

    name: str
    models: tuple[str, ...]  # that it can be drawn of
    help: str
    endings: tuple[str, ...] = _FIGURES

    @property
    def option(self) -> str:
        """As the command line calls it."""
        return f"--show-{self.name}"


ATTENTION = Show(
    "attention",
    (NFM_MODEL,),
    "Draw which earlier layers the first finished run of nfm reads, as .png, .svg or .pdf.",
)
ACTIVITY = Show(
    "activity",
    RIM_CORES,
    "Draw which mechanisms of the first finished run with any are active along sequences, as "
    ".png, .svg or .pdf.",
)
ROLLOUT = Show(
    "rollout",
    CORES,
    "Draw frames that the first finished run of each core predicts below the true ones, as .gif "
    "or .png.",
    (".gif", ".png"),
)


class Task(NamedTuple):
    """A row of :data:`TASKS`."""

    config: type[ExperimentConfig]
    experiment: str  # package.module:Class
    summary: str  # of its help page
    compared: Compared = MODELS
    shows: tuple[Show, ...] = ()

    @property
    def name(self) -> str:
        """As the command line calls it."""
        return self.config.task

    @property
    def models(self) -> tuple[str, ...]:
        """The models there are."""
        return get_args(get_type_hints(self.config)["model"])

    def make(self, config: ExperimentConfig) -> Experiment[Any, Any]:
        """The task with these settings."""
        module, _, name = self.experiment.partition(":")
        experiment: Experiment[Any, Any] = getattr(importlib.import_module(module), name)(config)
        return experiment


#: All tasks, by name.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            SortOfClevrConfig,
            "experiments.sort_of_clevr:SortOfClevrExperiment",
            "Questions on an image of six objects, also with unseen combinations of properties.",
            shows=(ATTENTION,),
        ),
        Task(
            StackedMNISTConfig,
            "experiments.stacked_mnist:StackedMNISTExperiment",
            "Which digits an image shows, with other numbers of them than in training.",
            shows=(ATTENTION,),
        ),
        Task(
            ClassifyConfig,
            "experiments.classify:ClassifyExperiment",
            "Which class an image is of, also behind a box; PreActResNets on four sets of images.",
            shows=(ATTENTION,),
        ),
        Task(
            GANConfig,
            "experiments.gan:GANExperiment",
            "Images that look like those of a set; SNGAN and InfoMax-GAN.",
            shows=(ATTENTION,),
        ),
        Task(
            VAEConfig,
            "experiments.vae:VAEExperiment",
            "Latent vectors from which images can be told again; a variational autoencoder.",
            shows=(ATTENTION,),
        ),
        Task(
            CopyingConfig,
            "experiments.copying:CopyingExperiment",
            "Symbols told again after more blank steps than in training.",
            COMPARED_CORES,
            (ACTIVITY,),
        ),
        Task(
            AddingConfig,
            "experiments.adding:AddingExperiment",
            "The sum of two marked numbers among more numbers than in training.",
            COMPARED_CORES,
            (ACTIVITY,),
        ),
        Task(
            SequentialMNISTConfig,
            "experiments.sequential_mnist:SequentialMNISTExperiment",
            "Digits read pixel by pixel or row by row, in larger images than in training.",
            COMPARED_CORES,
            (ACTIVITY,),
        ),
        Task(
            BouncingBallsConfig,
            "experiments.bouncing_balls:BouncingBallsExperiment",
            "Frames of bouncing balls to come, of more balls than in training and behind curtains.",
            COMPARED_CORES,
            (ACTIVITY, ROLLOUT),
        ),
        Task(
            LanguageModelConfig,
            "experiments.language_model:LanguageModelExperiment",
            "The next character or word of a text file.",
            COMPARED_CORES,
            (ACTIVITY,),
        ),
    )
}
