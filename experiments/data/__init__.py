"""Data for the experiments of arXiv:2010.08012, as numpy arrays. Importing it imports no torch.

Generated: :mod:`~experiments.data.sort_of_clevr`, and :mod:`~experiments.data.stacked_mnist` from
digits. Read from their published files: :mod:`~experiments.data.mnist`,
:mod:`~experiments.data.cifar`, :mod:`~experiments.data.tiny_imagenet`. Random changes of batches:
:mod:`~experiments.data.augment`.
"""

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
from experiments.data.cifar import load_cifar
from experiments.data.common import LabelledImages, hold_out
from experiments.data.mnist import download_mnist, load_mnist
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
from experiments.data.tiny_imagenet import load_tiny_imagenet

__all__ = [
    "ANSWERS",
    "NON_RELATIONAL",
    "QUESTION_TEXTS",
    "RELATIONAL",
    "TEST_COUNTS",
    "TRAIN_COUNTS",
    "Boxes",
    "Combination",
    "LabelledImages",
    "Mixup",
    "SortOfClevr",
    "StackedDigits",
    "chance_levels",
    "crop_and_flip",
    "describe",
    "download_mnist",
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
    "random_crop",
    "random_flip",
    "stack_digits",
    "train_batches",
]
