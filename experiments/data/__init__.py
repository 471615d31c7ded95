"""Data for the experiments, as numpy arrays. Importing it imports no torch.

Images, of arXiv:2010.08012. Generated: :mod:`~experiments.data.sort_of_clevr`, and
:mod:`~experiments.data.stacked_mnist` from digits. Read from their published files:
:mod:`~experiments.data.mnist`, :mod:`~experiments.data.cifar`,
:mod:`~experiments.data.tiny_imagenet`. Random changes of batches: :mod:`~experiments.data.augment`.

Sequences, of arXiv:1909.10893: :mod:`~experiments.data.algorithmic` (copying and adding),
:mod:`~experiments.data.pixel_sequences`, :mod:`~experiments.data.bouncing_balls`; any text:
:mod:`~experiments.data.text`.
"""

from experiments.data.algorithmic import (
    AddingSequences,
    CopyingSequences,
    adding_sequences,
    copying_sequences,
)
from experiments.data.augment import (
    Boxes,
    Mixup,
    crop_and_flip,
    draw_mixup,
    occlude,
    occlusion_boxes,
    random_crop,
    random_flip,
)
from experiments.data.bouncing_balls import Balls, draw_curtains, draw_frames, simulate
from experiments.data.cifar import load_cifar
from experiments.data.common import LabelledImages, hold_out
from experiments.data.mnist import download_mnist, load_mnist
from experiments.data.pixel_sequences import pixel_order, pixel_sequences, resize_nearest
from experiments.data.sort_of_clevr import (
    ANSWERS,
    NON_RELATIONAL,
    QUESTION_TEXTS,
    RELATIONAL,
    Combination,
    SortOfClevr,
    chance_levels,
    describe,
    held_out_combinations,
    make_sort_of_clevr,
)
from experiments.data.stacked_mnist import (
    TEST_COUNTS,
    TRAIN_COUNTS,
    StackedDigits,
    evaluation_set,
    stack_digits,
    train_batches,
)
from experiments.data.text import Corpus, pieces, read_corpus, to_columns, to_lines
from experiments.data.tiny_imagenet import load_tiny_imagenet

__all__ = [
    "ANSWERS",
    "NON_RELATIONAL",
    "QUESTION_TEXTS",
    "RELATIONAL",
    "TEST_COUNTS",
    "TRAIN_COUNTS",
    "AddingSequences",
    "Balls",
    "Boxes",
    "Combination",
    "CopyingSequences",
    "Corpus",
    "LabelledImages",
    "Mixup",
    "SortOfClevr",
    "StackedDigits",
    "adding_sequences",
    "chance_levels",
    "copying_sequences",
    "crop_and_flip",
    "describe",
    "download_mnist",
    "draw_curtains",
    "draw_frames",
    "draw_mixup",
    "evaluation_set",
    "held_out_combinations",
    "hold_out",
    "load_cifar",
    "load_mnist",
    "load_tiny_imagenet",
    "make_sort_of_clevr",
    "occlude",
    "occlusion_boxes",
    "pieces",
    "pixel_order",
    "pixel_sequences",
    "random_crop",
    "random_flip",
    "read_corpus",
    "resize_nearest",
    "simulate",
    "stack_digits",
    "to_columns",
    "to_lines",
    "train_batches",
]
