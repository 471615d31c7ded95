"""Sort-of-CLEVR: images of six coloured objects, and questions on one of them or on all.

The task of Santoro et al. (arXiv:1706.01427), as used in section 4.3 of arXiv:2010.08012: a model
sees an image and a question of 11 bits and picks one of ten answers. Questions on one object are
*non-relational*, questions that compare it with the others *relational*.

Geometry, colours, questions and answers are those of the NFM authors' generator. Differs from it
in four places, where it does not do what the paper says:

1. It seeds anew before every object: all objects are circles, all images have the same questions.
   Here each image has a random generator of its own.
2. It holds out whole colours. The paper holds out combinations of colour and shape, as here.
3. With colours held out, its question bits mean another colour in training than in the test.
4. Its closest object is at times the object asked about. Here that one is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.data.clevr_scenes import COLOURS, IMAGE_SIZE, SHAPES, Scene, draw, draw_centres
from experiments.data.common import check_at_least, check_choice, check_seed

ANSWERS = ("yes", "no", "rectangle", "circle", "0", "1", "2", "3", "4", "5")
YES, NO, FIRST_SHAPE, FIRST_COUNT = 0, 1, 2, 4
QUESTIONS_PER_KIND = 10
QUESTION_BITS = 11

#: The question of each kind; kinds 0 to 2 are non-relational, 3 to 5 relational.
QUESTION_TEXTS = (
    "What is the shape of the {} object?",
    "Is the {} object in the left half of the image?",
    "Is the {} object in the upper half of the image?",
    "What is the shape of the object closest to the {} object?",
    "What is the shape of the object furthest from the {} object?",
    "How many other objects have the shape of the {} object?",
)

NON_RELATIONAL, RELATIONAL = (0, 1, 2), (3, 4, 5)

#: How many answers make sense for each kind; a guess among them is right one time in so many.
POSSIBLE_ANSWERS = (2, 2, 2, 2, 2, 6)

Split = Literal["train", "validation", "test"]
_SPLITS = ("train", "validation", "test")
_FAR = 2 * IMAGE_SIZE**2  # more than any squared distance


class Combination(NamedTuple):
    """A colour with a shape, of which there are twelve: indices into COLOURS and SHAPES."""

    colour: int
    shape: int

    def __str__(self) -> str:
        return f"{COLOURS[self.colour]} {SHAPES[self.shape]}"


@dataclass(frozen=True, kw_only=True)
class SortOfClevr:
    """M images with 20 questions each: 10 non-relational ones, then 10 relational ones.

    Args:
        images: uint8 ``(M, 75, 75, 3)``, RGB, rows from top to bottom.
        questions: uint8 ``(M, 20, 11)``, zeros and ones: six bits of colour, non-relational,
            relational, and three bits for which question of those.
        answers: uint8 ``(M, 20)``, index into ``ANSWERS``.
        kinds: uint8 ``(M, 20)``, index into ``QUESTION_TEXTS``; 3 and more are relational.
        contains_held_out: bool ``(M,)``, the image shows a combination that was held out.
        touches_held_out: bool ``(M, 20)``, the answer concerns such an object: it is the one asked
            about, or the closest or furthest one that is the answer; for a count, any in the image.
        scene: the objects drawn.
        held_out: the combinations that training images never show.
    """

    images: NDArray[np.uint8]
    questions: NDArray[np.uint8]
    answers: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    contains_held_out: NDArray[np.bool_]
    touches_held_out: NDArray[np.bool_]
    scene: Scene
    held_out: tuple[Combination, ...]


def held_out_combinations(number: int, seed: int) -> tuple[Combination, ...]:
    """Draw which of the twelve combinations of colour and shape training images never show.

    Each has a colour of its own, as an object of every colour must be drawn in some shape. Of one
    seed, the combinations for a smaller number are the first ones of those for a larger number.

    Args:
        number: 0 to 6; the paper has 1, 2 and 3.
        seed: seed of the draw, 0 or more.

    Returns:
        ``number`` combinations.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> [str(combination) for combination in held_out_combinations(2, seed=0)]
        ['orange rectangle', 'blue rectangle']
    """
    if not 0 <= number <= len(COLOURS):
        raise ValueError(
            f"held_out_combinations: number must lie in [0, {len(COLOURS)}], one per colour; "
            f"got {number}."
        )
    check_seed("held_out_combinations", seed)
    rng = np.random.default_rng(seed)
    colours = rng.permutation(len(COLOURS))
    shapes = rng.integers(len(SHAPES), size=len(COLOURS))
    drawn = zip(colours.tolist(), shapes.tolist(), strict=True)
    return tuple(Combination(colour, shape) for colour, shape in drawn)[:number]


def make_sort_of_clevr(
    num_images: int, *, seed: int, split: Split, held_out: Sequence[Combination] = ()
) -> SortOfClevr:
    """Make the images, questions and answers of a split.

    Image i depends on ``seed``, ``split`` and i alone, whatever ``num_images`` is. Holding out
    combinations leaves centres and questions as they are, and gives the objects concerned the
    other shape in training and validation. Test images show all twelve combinations.

    Args:
        num_images: 1 or more. The authors have 9800 for training and 2000 for the test.
        seed: seed of all draws, 0 or more.
        split: ``"train"``, ``"validation"`` (like training) or ``"test"``.
        held_out: combinations that training never shows, see :func:`held_out_combinations`.

    Returns:
        The split; see :class:`SortOfClevr`.

    Raises:
        ValueError: if an argument is outside its range, or a colour is to be held out in both
            shapes.

    Example:
        >>> data = make_sort_of_clevr(3, seed=0, split="train")
        >>> data.images.shape, data.questions.shape
        ((3, 75, 75, 3), (3, 20, 11))
        >>> describe(data.questions[0, 0]), ANSWERS[data.answers[0, 0]]
        ('Is the red object in the left half of the image?', 'no')
    """
    where = "make_sort_of_clevr"
    check_at_least(where, "num_images", num_images)
    check_seed(where, seed)
    check_choice(where, "split", split, _SPLITS)
    removed = _held_out_table(held_out)  # (6, 2) bool
    scene, asked, kinds = _draw_scenes(num_images, (seed, _SPLITS.index(split)))
    if split != "test":
        scene = scene._replace(shapes=np.where(removed.any(1), removed.argmin(1), scene.shapes))
    answers, subjects = _answer(scene, asked, kinds)
    unseen = removed[np.arange(len(COLOURS)), scene.shapes]  # (M, 6)
    touched = np.take_along_axis(unseen, asked, 1) | np.take_along_axis(unseen, subjects, 1)
    contains: NDArray[np.bool_] = np.any(unseen, axis=1)  # (M,)
    return SortOfClevr(
        images=draw(scene),
        questions=_encode(asked, kinds),
        answers=answers.astype(np.uint8),
        kinds=kinds.astype(np.uint8),
        contains_held_out=contains,
        touches_held_out=np.where(kinds == 5, contains[:, None], touched),
        scene=scene,
        held_out=tuple(held_out),
    )


def describe(question: ArrayLike) -> str:
    """A question in English.

    Args:
        question: its 11 bits.

    Returns:
        One sentence.

    Raises:
        ValueError: if the bits are no question.

    Example:
        >>> describe([0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1])
        'How many other objects have the shape of the blue object?'
    """
    bits = np.asarray(question)
    groups = (6, 8)  # colour, relational or not, subtype
    if bits.shape != (QUESTION_BITS,) or any(
        sorted(part.tolist()) != [0] * (part.size - 1) + [1] for part in np.split(bits, groups)
    ):
        raise ValueError(
            "describe: question must be 11 bits with one set among 0-5, 6-7 and 8-10; "
            f"got {bits.tolist()}."
        )
    colour, relational, subtype = (int(part.argmax()) for part in np.split(bits, groups))
    return QUESTION_TEXTS[3 * relational + subtype].format(COLOURS[colour])


def chance_levels(data: SortOfClevr, kinds: Sequence[int]) -> tuple[float, float]:
    """Accuracy of a model that does not look at the image, on questions of some kinds.

    Two or three of five other objects have the same shape more often than none, so that for a
    count always giving the most frequent answer is right more often than guessing.

    Args:
        data: the questions to be answered.
        kinds: kinds of the questions, such as ``(0,)`` or :data:`RELATIONAL`.

    Returns:
        The expected share of right answers when guessing among those that make sense, and the
        share when giving, for each kind, the answer most frequent in ``data``.

    Raises:
        ValueError: if ``data`` has no question of these kinds.

    Example:
        >>> data = make_sort_of_clevr(1000, seed=0, split="test")
        >>> [round(share, 2) for share in chance_levels(data, RELATIONAL)]
        [0.39, 0.45]
    """
    guessed = frequent = total = 0.0
    for kind in kinds:
        counts = np.bincount(data.answers[data.kinds == kind], minlength=len(ANSWERS)).tolist()
        guessed += sum(counts) / POSSIBLE_ANSWERS[kind]
        frequent += max(counts)
        total += sum(counts)
    if not total:
        raise ValueError(f"chance_levels: data must have questions of kinds {kinds}; got none.")
    return guessed / total, frequent / total


def _held_out_table(held_out: Sequence[Combination]) -> NDArray[np.bool_]:
    table = np.zeros((len(COLOURS), len(SHAPES)), dtype=bool)
    for colour, shape in held_out:
        if colour not in range(len(COLOURS)) or shape not in range(len(SHAPES)):
            raise ValueError(
                "make_sort_of_clevr: held_out must hold pairs of a colour (0 to 5) and a shape "
                f"(0 or 1); got {(colour, shape)}."
            )
        table[colour, shape] = True
    if table.all(1).any():
        both = COLOURS[int(table.all(1).argmax())]
        raise ValueError(
            f"make_sort_of_clevr: held_out must leave each colour a shape; got both for {both}."
        )
    return table


def _draw_scenes(
    num_images: int, source: tuple[int, int]
) -> tuple[Scene, NDArray[np.int64], NDArray[np.int64]]:
    """Objects of each image, then colour asked and kind of each question, both ``(M, 20)``."""
    centres = np.empty((num_images, len(COLOURS), 2), dtype=np.int64)
    shapes = np.empty((num_images, len(COLOURS)), dtype=np.int64)
    asked = np.empty((num_images, 2 * QUESTIONS_PER_KIND), dtype=np.int64)
    kinds = np.empty_like(asked)
    for image in range(num_images):
        rng = np.random.default_rng(np.random.SeedSequence((*source, image)))
        shapes[image] = rng.integers(len(SHAPES), size=len(COLOURS))
        asked[image] = rng.integers(len(COLOURS), size=asked.shape[1])
        kinds[image] = rng.integers(3, size=asked.shape[1])
        centres[image] = draw_centres(rng)
    kinds[:, QUESTIONS_PER_KIND:] += 3
    return Scene(centres, shapes), asked, kinds


def _answer(
    scene: Scene, asked: NDArray[np.int64], kinds: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Answer each question, and name the object whose property the answer is; both ``(M, 20)``."""
    shapes = scene.shapes
    apart = scene.centres[:, :, None] - scene.centres[:, None]  # (M, 6, 6, 2)
    distance = (apart**2).sum(-1)  # (M, 6, 6)
    itself = np.eye(len(COLOURS), dtype=bool)
    # argmin and argmax take the first of equals: ties go by the order of colours.
    closest = np.where(itself, _FAR, distance).argmin(-1)  # (M, 6)
    furthest = distance.argmax(-1)  # never itself: the others are 10 or more away
    alike = (shapes[:, :, None] == shapes[:, None]).sum(-1) - 1  # (M, 6), itself not counted
    # The middle column, 37, is on the left: 37 < 75 / 2.
    x, y = np.moveaxis(np.where(scene.centres < IMAGE_SIZE / 2, YES, NO), -1, 0)  # each (M, 6)
    by_kind = np.stack(
        [
            FIRST_SHAPE + shapes,
            x,
            y,
            FIRST_SHAPE + np.take_along_axis(shapes, closest, 1),
            FIRST_SHAPE + np.take_along_axis(shapes, furthest, 1),
            FIRST_COUNT + alike,
        ]
    )  # (6 kinds, M, 6)
    image = np.arange(len(shapes))[:, None]
    subjects = np.where(
        kinds == 3, closest[image, asked], np.where(kinds == 4, furthest[image, asked], asked)
    )
    return by_kind[kinds, image, asked], subjects


def _encode(asked: NDArray[np.int64], kinds: NDArray[np.int64]) -> NDArray[np.uint8]:
    questions = np.zeros((*asked.shape, QUESTION_BITS), dtype=np.uint8)
    for bit in (asked, 6 + kinds // 3, 8 + kinds % 3):
        np.put_along_axis(questions, bit[..., None], 1, axis=-1)
    return questions
