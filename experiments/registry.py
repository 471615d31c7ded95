"""The tasks of ``rims experiment``: their settings, and the classes that compute them.

How a task is added:

1. In :mod:`experiments.configs`, a subclass of :class:`~experiments.configs.base.ExperimentConfig`
   (of :class:`~experiments.configs.base.NFMConfig` if one of its models has NFM): ``task``, its
   name on the command line; ``model: Literal[...]``, the models there are; a field made by
   ``option`` for every setting of its own, and by ``changed`` for every common one with another
   default. What depends on several fields is checked in ``__post_init__``.
2. A row of :data:`TASKS`.
3. The file that the row names, with a subclass of :class:`~experiments.experiment.Experiment`:
   ``make_model``, ``steps_per_epoch``, ``batches``, ``loss``, ``evaluate``, ``rows``; ``test``,
   ``selection``, ``published``, ``curves``, ``notes`` and ``check`` where the defaults do not do;
   ``data_identity``, if it reads files; what the row's ``shows`` name.
   A task with several optimisers gives ``make_optimizers`` and ``train_step``.

A task that compares recurrent cores takes :class:`~experiments.configs.sequences.SequenceConfig`
and :class:`~experiments.shared.sequences.SequenceExperiment` instead; ``model`` is then the core.

Command, options, help, run folders, checkpoints, seeds, tables and figures follow from these.
Nothing in here may import torch, so that help pages and mistakes are answered at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

from experiments.configs.base import NFM_MODEL, ExperimentConfig
from experiments.configs.generated import SortOfClevrConfig, StackedMNISTConfig
from experiments.configs.images import ClassifyConfig, GANConfig, VAEConfig
from experiments.configs.sequences import (
    CORES,
    AddingConfig,
    BouncingBallsConfig,
    CopyingConfig,
    LanguageModelConfig,
    SequentialMNISTConfig,
)
from lab.cores import RIM_CORES

if TYPE_CHECKING:
    from experiments.experiment import Experiment


class Compared(NamedTuple):
    """The name that users know for the setting ``model``, in which runs of a task differ."""

    option: str
    one: str
    many: str


MODELS = Compared("--model", "model", "models")
COMPARED_CORES = Compared("--cores", "core", "cores")

_FIGURES = (".png", ".svg", ".pdf")


class Show(NamedTuple):
    """A picture of trained models, drawn by a command that is asked for it: ``--show-NAME``."""

    name: str
    models: tuple[str, ...]  # that it can be drawn of; none: of all
    help: str
    endings: tuple[str, ...] = _FIGURES

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return f"--show-{self.name}"

    def can_show(self, model: str) -> bool:
        """Whether it can be drawn of a model."""
        return not self.models or model in self.models


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
    (),
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
        """Its name on the command line."""
        return self.config.task

    @property
    def models(self) -> tuple[str, ...]:
        """The models there are; of cores those that are compared unless others are named."""
        return (
            CORES
            if self.compared is COMPARED_CORES
            else get_args(get_type_hints(self.config)["model"])
        )

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
            "experiments.tasks.sort_of_clevr:SortOfClevrExperiment",
            "Answer questions on an image of six objects, with unseen combinations of properties.",
            shows=(ATTENTION,),
        ),
        Task(
            StackedMNISTConfig,
            "experiments.tasks.stacked_mnist:StackedMNISTExperiment",
            "Name the digits in an image, with other numbers of digits than in training.",
            shows=(ATTENTION,),
        ),
        Task(
            ClassifyConfig,
            "experiments.tasks.classify:ClassifyExperiment",
            "Classify images, also behind a box; PreActResNets on four data sets.",
            shows=(ATTENTION,),
        ),
        Task(
            GANConfig,
            "experiments.tasks.gan:GANExperiment",
            "Generate images like those of a data set; SNGAN and InfoMax-GAN.",
            shows=(ATTENTION,),
        ),
        Task(
            VAEConfig,
            "experiments.tasks.vae:VAEExperiment",
            "Variational autoencoder: reconstructs images from latent vectors.",
            shows=(ATTENTION,),
        ),
        Task(
            CopyingConfig,
            "experiments.tasks.copying:CopyingExperiment",
            "Recall symbols after a longer delay than in training.",
            COMPARED_CORES,
            (ACTIVITY,),
        ),
        Task(
            AddingConfig,
            "experiments.tasks.adding:AddingExperiment",
            "Add two marked numbers in a longer sequence than in training.",
            COMPARED_CORES,
            (ACTIVITY,),
        ),
        Task(
            SequentialMNISTConfig,
            "experiments.tasks.sequential_mnist:SequentialMNISTExperiment",
            "Read a digit pixel by pixel or row by row, in larger images than in training.",
            COMPARED_CORES,
            (ACTIVITY,),
        ),
        Task(
            BouncingBallsConfig,
            "experiments.tasks.bouncing_balls:BouncingBallsExperiment",
            "Predict frames of bouncing balls: more balls than in training, and behind curtains.",
            COMPARED_CORES,
            (ACTIVITY, ROLLOUT),
        ),
        Task(
            LanguageModelConfig,
            "experiments.tasks.language_model:LanguageModelExperiment",
            "Predict the next character or word of a text file.",
            COMPARED_CORES,
            (ACTIVITY,),
        ),
    )
}
