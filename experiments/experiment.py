"""The interface of a task to :func:`experiments.fit.fit`: data, model, loss, evaluation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from experiments.configs.base import ExperimentConfig
from lab.running.guards import NotFinite, first_not_finite
from lab.running.memory import require_memory
from lab.words import message_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A weight, its gradient, and what the optimiser keeps of each.
_COPIES = {"adam": 4, "adamw": 4, "sgd": 2}

Config = TypeVar("Config", bound=ExperimentConfig)
Batch = TypeVar("Batch")


class Selection(NamedTuple):
    """The column of an evaluation that selects the best weights, and which way is better."""

    column: str
    better: Literal["higher", "lower"] = "higher"

    def improves(self, value: float, on: float | None) -> bool:
        """Whether ``value`` is better than the best so far; of equal ones the first stays."""
        return on is None or (value > on if self.better == "higher" else value < on)


class Row(NamedTuple):
    """One number that :meth:`Experiment.test` returns, as a row of the tables.

    Args:
        key: in what ``test`` returns.
        label: in tables and figures.
        unit: ``"%"`` for shares, which are kept in [0, 1] and shown in per cent.
        better: which way is better.
        lowest: smallest value there can be, where it is no share.
        drawn: whether it has bars in the figure.
    """

    key: str
    label: str
    unit: Literal["%", ""] = "%"
    better: Literal["higher", "lower"] = "higher"
    lowest: float = -math.inf
    drawn: bool = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which values it must lie."""
        return (0.0, 1.0) if self.unit == "%" else (self.lowest, math.inf)


class Curve(NamedTuple):
    """A column of ``progress.csv`` that is drawn over the epochs; shares in per cent."""

    column: str
    label: str
    unit: Literal["%", ""] = ""


class Published(NamedTuple):
    """A number of a paper, in the unit of its :class:`Row`: mean and, if given, its deviation."""

    mean: float
    deviation: float | None = None


@dataclass
class State:
    """The state that a training step works on.

    Args:
        model: the network, in training mode.
        optimizers: by name; ``"main"`` if there is one.
        generator: for draws of the loss, on the device of the model.
        max_grad_norm: gradients are scaled down to it; 0: never.
        bf16: whether products are computed in bfloat16 inside :meth:`autocast`.
        carried: what a task takes along from one step to the next, on the device of the model, such
            as the state of a core that goes on reading; saved with the run.
    """

    model: nn.Module
    optimizers: Mapping[str, Optimizer]
    generator: torch.Generator
    max_grad_norm: float = 0.0
    bf16: bool = False
    carried: tuple[Tensor, ...] = ()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Context in which a training step computes its loss."""
        device = self.generator.device.type
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(device, torch.bfloat16, enabled=self.bf16))
            # Without instructions for this type oneDNN has no LSTM, and raises; PyTorch has one.
            if self.bf16 and device == "cpu" and not _knows_bfloat16():
                onednn: Any = torch.backends.mkldnn
                stack.callback(setattr, onednn, "enabled", onednn.enabled)
                onednn.enabled = False
            yield

    def descend(self, loss: Tensor, optimizer: str = "main") -> None:
        """Make one optimiser step down the gradient of ``loss``.

        Nothing is changed if the loss or its gradient is not finite.

        Raises:
            NotFinite: naming the loss, or a parameter.
        """
        if not bool(loss.isfinite()):
            raise NotFinite("loss" if optimizer == "main" else f"loss of the {optimizer}")
        chosen = self.optimizers[optimizer]
        chosen.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        parameters = [p for group in chosen.param_groups for p in group["params"]]
        limit = self.max_grad_norm or torch.inf
        if not bool(nn.utils.clip_grad_norm_(parameters, limit).isfinite()):
            raise NotFinite(f"the gradient of {self._name_of_broken(parameters)}")
        chosen.step()

    def _name_of_broken(self, parameters: Sequence[Tensor]) -> str:
        own = {id(parameter) for parameter in parameters}
        named = ((n, p.grad) for n, p in self.model.named_parameters() if id(p) in own)
        # Each can be finite and the sum of their squares not.
        return first_not_finite(named) or "all parameters together"


class Experiment(ABC, Generic[Config, Batch]):
    """A task with its settings: subclass it, one file per task.

    The constructor must be quick: data are made or read when they are first asked for.

    Args:
        config: the settings.

    Attributes:
        selection: by what the best weights are chosen, which :meth:`test` then judges; ``None``
            (default): those at the end are judged.
        curves: columns of the training that are drawn.
    """

    selection: Selection | None = None
    curves: Sequence[Curve] = (Curve("loss", "loss"),)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = torch.device(config.device)

    def check(self) -> None:
        """Refuse settings that cannot run: files are missing, or no model can be built.

        The model is built without its numbers, which takes no memory whatever its size.

        Raises:
            ValueError: in one line.
        """
        require_memory(self._model_memory, f"model {self.config.model}", "make it smaller")
        what, cure = f"{self.config.task} with these settings", "give smaller batches or fewer data"
        require_memory(self.memory, what, f"{cure}, or make the data smaller")
        if self.config.patience and self.selection is None:
            raise ValueError(
                f"--patience is by what an evaluation chooses the best epoch; {self.config.task} "
                "judges the weights at the end."
            )

    @property
    def memory(self) -> float:
        """Bytes that training takes at least, of the model and of all that is known of the data."""
        return self._model_memory + (self.data_memory if self.device.type == "cpu" else 0.0)

    @cached_property
    def _model_memory(self) -> float:
        """Bytes of the weights, gradients and optimiser state on the CPU."""
        try:
            with torch.device("meta"):  # there tensors have a shape and no content
                model = self.make_model()
        except (RuntimeError, TypeError) as error:  # of torch, for sizes beyond any memory
            what = message_of(error)[:200]
            raise ValueError(f"model {self.config.model} cannot be built: {what}") from None
        weights = sum(part.numel() * part.element_size() for part in model.parameters())
        # It is built on the CPU, and all else is where it is trained.
        return float(weights * (_COPIES[self.config.optimizer] if self.device.type == "cpu" else 1))

    @property
    def data_memory(self) -> float:
        """Bytes at least of the data that are there at once, a batch's outputs among them.

        By default 0: a task whose settings decide how much there is says it here.
        """
        return 0.0

    @abstractmethod
    def make_model(self) -> nn.Module:
        """The network, on the CPU; the seed has been set before.

        :meth:`check` calls it too, with ``meta`` as torch's default device: weights must not be
        read in here.
        """

    def make_optimizers(self, model: nn.Module) -> dict[str, Optimizer]:
        """The optimisers by name; by default one, of all parameters, as the settings say."""
        return {"main": make_optimizer(self.config, model)}

    @property
    def data_identity(self) -> str:
        """A few words that identify the data among others that the same settings could find.

        Kept with a run, which does not go on with other data. Empty (default): the data follow
        from the settings. A task that reads files returns
        :func:`experiments.data.common.identity` of them.
        """
        return ""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Batches of every epoch."""

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, counted from 0: a function of settings, seed and epoch alone.

        Whoever draws here draws from :meth:`rng`, so that a continued run sees the same data.
        """

    def rng(self, epoch: int, stream: int = 0) -> np.random.Generator:
        """The generator of an epoch's draws; of another ``stream``, independent ones."""
        return np.random.default_rng((self.config.seed, epoch, stream))

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars of a batch, all logged; ``"loss"`` is descended.

        Every task has it but those that override :meth:`train_step`.

        Args:
            model: in training mode.
            batch: a batch of :meth:`batches`.
            generator: for draws, on the model's device.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither loss nor train_step.")

    def train_step(self, state: State, batch: Batch) -> dict[str, float | Tensor]:
        """Learn from a batch; by default, one step down the loss.

        A task with several optimisers overrides it and calls :meth:`State.descend` for each.

        Returns:
            What is logged, as the mean over the steps since the last row.
        """
        with state.autocast():
            scalars = self.loss(state.model, batch, state.generator)
        state.descend(scalars["loss"])
        return {name: value.detach() for name, value in scalars.items()}

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Judge a model while it is trained, on validation data; columns of ``progress.csv``.

        Called in evaluation mode, without gradients, and with the same random state every time.
        """

    def pictures(self, model: nn.Module) -> Mapping[str, NDArray[np.uint8]]:
        """Pictures of a model's output, after every evaluation; called as :meth:`evaluate` is.

        Returns:
            By name, grey ``(Y, X)`` or RGB ``(Y, X, 3)``; written into the run's folder as PNG
            files of this name and the steps made. By default there are none.
        """
        return {}

    def test(self, model: nn.Module) -> dict[str, float]:
        """Judge the trained model, by the keys of :attr:`rows`; by default as :meth:`evaluate`."""
        return self.evaluate(model)

    def test_of_progress(self, progress: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """More numbers by the keys of :attr:`rows`, from the columns of ``progress.csv``.

        For what is judged by other epochs than the one that :attr:`selection` chooses. By default
        there are none.
        """
        return {}

    def attention(self, model: nn.Module) -> Figure:
        """Draw which earlier layers the modules of a trained NFM read; called as :meth:`evaluate`.

        Only of tasks with a model ``nfm``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no attention.")

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes in the table of models besides the number of parameters; by default none."""
        return {}

    @property
    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """The rows of the tables."""

    @property
    def published(self) -> Mapping[str, Mapping[str, Published]]:
        """Numbers of a paper for these settings, by model and key of a row."""
        return {}

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables, one sentence or more each."""
        return ()


def make_optimizer(config: ExperimentConfig, model: nn.Module) -> Optimizer:
    """The optimiser of all parameters of ``model`` that the settings ask for."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    kinds: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
    extra: dict[str, Any] = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    kind: Any = kinds[config.optimizer]
    made: Optimizer = kind(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **extra
    )
    return made


def _knows_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
