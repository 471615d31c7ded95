"""Settings of the tasks on sequences, on which recurrent cores are compared.

Nothing in here may import torch, see :mod:`experiments.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.configs.base import DigitsConfig, ExperimentConfig
from experiments.data.bouncing_balls import Masses
from experiments.data.pixel_sequences import Order
from experiments.data.text import Unit
from lab.cores import CoreSettings, check_core
from lab.settings import ConfigError, changed, option

#: The cores that are compared unless others are named.
CORES = ("rim_lstm", "rim_gru", "lstm", "gru")

Reading = Literal["stream", "lines"]

_LONGEST = 10**6  # steps


def whole_numbers(field: str, text: str, low: int, high: int = _LONGEST) -> tuple[int, ...]:
    """The whole numbers of a setting such as ``50,100``, in rising order.

    Args:
        field: the setting, for errors.
        text: numbers with commas between them, each once.
        low: the smallest there may be.
        high: the largest.

    Raises:
        ConfigError: in one line, for anything else.

    Example:
        >>> whole_numbers("test_blanks", "100,50", 1)
        (50, 100)
    """
    words = [word.strip() for word in text.split(",")]
    rule = f"must be whole numbers from {low} to {high} with commas between them, each once"
    if not all(word.isascii() and word.isdigit() and len(word) < 19 for word in words):
        raise ConfigError(field, f"{rule}; got {text!r}.")
    numbers = sorted(map(int, words))
    if len(set(numbers)) < len(numbers) or numbers[0] < low or numbers[-1] > high:
        raise ConfigError(field, f"{rule}; got {text!r}.")
    return tuple(numbers)


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(CoreSettings, ExperimentConfig):
    """Adds what a core can be told; sizes as the authors of arXiv:1909.10893 have them.

    ``dropout`` is that of ``torch.nn.LSTM`` between layers, and also acts before the first layer
    and behind the last one.
    """

    model: str = option("rim_lstm", "Network", "The recurrent core: its name or import path.")
    embedding_size: int = option(
        600, "Network", "Features that the core reads at each step.", low=1
    )
    hidden_size: int = changed(CoreSettings, "hidden_size", 600)
    dropout: float = option(
        0.0,
        "Network",
        "Share of what each layer reads, and of the core's output, that training zeroes.",
        low=0,
        high=0.99,
    )
    num_rims: int = changed(CoreSettings, "num_rims", 6)
    k: int = changed(CoreSettings, "k", 4)
    input_dropout: float = option(
        0.0,
        "RIM",
        "Share of what mechanisms read of the input that training zeroes.",
        low=0,
        high=0.99,
    )
    comm_dropout: float = option(
        0.0,
        "RIM",
        "Share of what mechanisms read of each other that training zeroes.",
        low=0,
        high=0.99,
    )
    init_from_unit_size: bool = option(
        False, "RIM", "Draw gate weights by the size of a mechanism instead of --hidden-size."
    )
    max_grad_norm: float = changed(ExperimentConfig, "max_grad_norm", 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_core(self.model, "model")

    @property
    def core(self) -> str:
        """Name or import path of the core."""
        return self.model


@dataclass(frozen=True, kw_only=True)
class DrawnConfig(SequenceConfig):
    """Adds how much is drawn, for tasks whose training sequences are new in every step."""

    steps_per_epoch: int = option(
        200, "Training", "Steps that count as an epoch; the sequences are new in each.", low=1
    )
    validation_sequences: int = option(
        500, "Data", "Validation sequences; they select the best epoch.", low=1
    )
    test_sequences: int = option(1000, "Data", "Test sequences of each length.", low=1)
    epochs: int = option(100, "Training", "Epochs of --steps-per-epoch steps.", low=1)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Sizes that are tested."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class CopyingConfig(DrawnConfig):
    """Settings of copying; defaults as in section 4.1 of arXiv:1909.10893 and its code."""

    task: ClassVar[str] = "copying"

    items: int = option(10, "Data", "Symbols to remember.", low=1, high=_LONGEST)
    alphabet: int = option(8, "Data", "Different symbols.", low=1, high=_LONGEST)
    train_blanks: int = option(
        50, "Data", "Steps between the symbols and their recall, in training.", low=1, high=_LONGEST
    )
    test_blanks: str = option(
        "50,100,200,400", "Data", "The same in the test, one or more.", metavar="N,N"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_numbers("test_blanks", self.test_blanks, 1)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of blanks that are tested."""
        return whole_numbers("test_blanks", self.test_blanks, 1)


@dataclass(frozen=True, kw_only=True)
class AddingConfig(DrawnConfig):
    """Settings of adding; defaults as in the code of arXiv:1909.10893."""

    task: ClassVar[str] = "adding"

    train_length: int = option(50, "Data", "Numbers in a training sequence.", low=2, high=_LONGEST)
    test_lengths: str = option(
        "50,200,1000", "Data", "The same in the test, one or more.", metavar="N,N"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_numbers("test_lengths", self.test_lengths, 2)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths that are tested."""
        return whole_numbers("test_lengths", self.test_lengths, 2)


@dataclass(frozen=True, kw_only=True)
class SequentialMNISTConfig(SequenceConfig, DigitsConfig):
    """Settings of sequential MNIST; defaults as in section 4.1 of arXiv:1909.10893 and its code."""

    task: ClassVar[str] = "sequential-mnist"

    order: Order = option(
        "pixel", "Data", "A step is a pixel, a row, or a pixel in one shuffled order for all."
    )
    train_side: int = option(14, "Data", "Side of training images, pixels.", low=1, high=1000)
    test_sides: str = option(
        "14,16,19,24", "Data", "Sides of test images, one or more.", metavar="N,N"
    )
    train_digits: int = option(0, "Data", "Digits used of the training split; 0: all.", low=0)
    test_digits: int = option(0, "Data", "Digits used of the test split; 0: all.", low=0)
    select_per_side: bool = option(
        False,
        "Data",
        "Also report each side at the epoch best on validation digits of that side, as the "
        "authors' script does.",
    )
    learning_rate: float = changed(ExperimentConfig, "learning_rate", 7e-4)
    epochs: int = changed(ExperimentConfig, "epochs", 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_numbers("test_sides", self.test_sides, 1, 1000)

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides that are tested."""
        return whole_numbers("test_sides", self.test_sides, 1, 1000)


@dataclass(frozen=True, kw_only=True)
class BouncingBallsConfig(SequenceConfig):
    """Settings of bouncing balls; sizes of the videos as in arXiv:1909.10893, section 4.2."""

    task: ClassVar[str] = "bouncing-balls"

    balls: int = option(4, "Data", "Balls in training videos.", low=1, high=100)
    test_balls: str = option("4,6,8", "Data", "The same in the test, one or more.", metavar="N,N")
    curtain_share: float = option(
        0.5, "Data", "Share of training videos with an invisible curtain.", low=0, high=1
    )
    masses: Masses = option(
        "equal", "Data", "Masses of the balls; the area of a ball is proportional to its mass."
    )
    side: int = option(64, "Data", "Side of a frame, pixels.", low=2, high=1024)
    radius: float = option(
        0.1, "Data", "Radius of a ball; the side of the box is 1.", low=0.001, high=0.3
    )
    speed: float = option(
        0.05, "Data", "Initial speed of a ball, sides of the box per frame.", low=0, high=0.5
    )
    frames: int = option(50, "Data", "Frames of a training video.", low=2, high=_LONGEST)
    context: int = option(10, "Data", "True frames shown before a roll-out.", low=1, high=_LONGEST)
    rollout: int = option(
        50, "Data", "Frames predicted in a roll-out, each from the prediction before.", low=1
    )
    train_rollout: int = option(
        0,
        "Training",
        "Frames at the end of a training video that are predicted as in a roll-out, if above 1.",
        low=0,
        high=_LONGEST,
    )
    train_videos: int = option(2000, "Data", "Training videos.", low=1)
    validation_videos: int = option(
        200, "Data", "Validation videos; they select the best epoch.", low=1
    )
    test_videos: int = option(
        200, "Data", "Test videos of each number of balls, with and without curtain.", low=1
    )
    epochs: int = changed(ExperimentConfig, "epochs", 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_numbers("test_balls", self.test_balls, 1, 100)
        if self.batch_size > self.train_videos:
            rule = f"must not be above the {self.train_videos} videos trained on"
            raise ConfigError("batch_size", f"{rule}; got {self.batch_size}.")
        if self.train_rollout >= self.frames:
            rule = f"must be below the {self.frames} frames of a video"
            raise ConfigError("train_rollout", f"{rule}; got {self.train_rollout}.")

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of balls that are tested."""
        return whole_numbers("test_balls", self.test_balls, 1, 100)


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(SequenceConfig):
    """Settings of a language model; defaults as in the code of arXiv:1909.10893."""

    task: ClassVar[str] = "language-model"

    text_file: str = option(
        "", "Data", "Text file to learn from, UTF-8.", metavar="NAME", has_effect=False
    )
    unit: Unit = option("char", "Data", "Unit of prediction.")
    vocabulary: int = option(
        10_000,
        "Data",
        "Size of the vocabulary: the most frequent units; all others count as one.",
        low=1,
    )
    reading: Reading = option(
        "stream",
        "Data",
        "stream: --batch-size columns of text, with the state carried from piece to piece; lines: "
        "each line is a sequence.",
    )
    bptt: int = option(
        100,
        "Training",
        "Steps of a piece, through which gradients are propagated.",
        low=1,
        high=_LONGEST,
    )
    epochs: int = changed(ExperimentConfig, "epochs", 40)

    @property
    def unused(self) -> Mapping[str, str]:
        """Adds the length of pieces, where lines are read: they are not cut."""
        if self.reading == "stream":
            return super().unused
        return {**super().unused, "bptt": "cuts a stream; --reading is lines"}
