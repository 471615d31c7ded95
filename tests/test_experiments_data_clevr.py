"""Sort-of-CLEVR: answers worked out again from the pixels, what is held out, chance."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments.data.clevr_scenes import Scene, draw
from experiments.data.sort_of_clevr import (
    ANSWERS,
    NON_RELATIONAL,
    RELATIONAL,
    Combination,
    SortOfClevr,
    Split,
    chance_levels,
    describe,
    held_out_combinations,
    make_sort_of_clevr,
)

HELD_OUT = (Combination(0, 1), Combination(3, 0), Combination(5, 1))
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

#: The generator's colours, here by name of the RGB value.
RGB = {
    (255, 0, 0): "red",
    (0, 255, 0): "green",
    (0, 0, 255): "blue",
    (255, 156, 0): "orange",
    (128, 128, 128): "grey",
    (255, 255, 0): "yellow",
}
ORDER = list(RGB.values())

#: Objects of an image: colour -> x, y, shape.
Objects = dict[str, tuple[int, int, str]]


@pytest.fixture(scope="module")
def test_split() -> SortOfClevr:
    return make_sort_of_clevr(2000, seed=3, split="test", held_out=HELD_OUT)


@pytest.fixture(scope="module")
def train_split() -> SortOfClevr:
    return make_sort_of_clevr(2000, seed=3, split="train", held_out=HELD_OUT)


def objects_of(data: SortOfClevr, image: int) -> Objects:
    centres, shapes = data.scene.centres[image], data.scene.shapes[image]
    return {
        name: (int(x), int(y), "rectangle" if shape == 0 else "circle")
        for name, (x, y), shape in zip(ORDER, centres, shapes, strict=True)
    }


def objects_seen(image: np.ndarray) -> Objects | None:
    """What can be read off the pixels; None if an object is partly covered."""
    seen: Objects = {}
    for value, name in RGB.items():
        rows, columns = np.nonzero((image == value).all(-1))
        shape = {121: "rectangle", 81: "circle"}.get(len(rows))
        if shape is None:
            return None
        seen[name] = (round(columns.mean()), round(rows.mean()), shape)
    return seen


def slow_answer(objects: Objects, question: str) -> str:
    """From the sentence alone."""
    name = next(n for n in ORDER if f" {n} " in question)
    x, y, shape = objects[name]
    others = [objects[n] for n in ORDER if n != name]

    def distance(other: tuple[int, int, str]) -> int:
        return (other[0] - x) ** 2 + (other[1] - y) ** 2

    if "closest" in question:
        return min(others, key=distance)[2]
    if "furthest" in question:
        return max(others, key=distance)[2]
    if "How many" in question:
        return str(sum(other[2] == shape for other in others))
    if "left" in question:
        return "yes" if x < 37.5 else "no"
    if "upper" in question:
        return "yes" if y < 37.5 else "no"
    return shape


# --- images


def test_every_pixel_is_what_the_shapes_say() -> None:
    data = make_sort_of_clevr(4, seed=5, split="test")
    for index in range(4):
        expected = np.full((75, 75, 3), 255)
        for (name, (cx, cy, shape)), value in zip(
            objects_of(data, index).items(), RGB, strict=True
        ):
            assert RGB[value] == name
            for y in range(75):
                for x in range(75):
                    square = abs(x - cx) <= 5 and abs(y - cy) <= 5
                    disc = (x - cx) ** 2 + (y - cy) ** 2 <= 25
                    if square if shape == "rectangle" else disc:
                        expected[y, x] = value
        assert (data.images[index] == expected).all()


def test_a_later_colour_covers_an_earlier_one() -> None:
    centres = np.array([[[20, 30], [30, 30], [5, 5], [69, 5], [5, 69], [69, 69]]])
    image = draw(Scene(centres, np.zeros((1, 6), int)))[0]
    assert image[30, 25].tolist() == [0, 255, 0]  # one column is both red's and green's
    assert image[30, 24].tolist() == [255, 0, 0]
    assert image[69 + 5, 5].tolist() == [128, 128, 128]  # to the edge


def test_drawing_does_not_depend_on_how_many_are_drawn_at_once() -> None:
    data = make_sort_of_clevr(1100, seed=0, split="train")
    for index in (0, 1023, 1024, 1099):
        one = Scene(data.scene.centres[[index]], data.scene.shapes[[index]])
        assert (draw(one)[0] == data.images[index]).all()


def test_centres_keep_apart_and_fill_the_frame(test_split: SortOfClevr) -> None:
    centres = test_split.scene.centres
    assert centres.min() == 5
    assert centres.max() == 69
    apart = ((centres[:, :, None] - centres[:, None]) ** 2).sum(-1)[:, ~np.eye(6, dtype=bool)]
    assert apart.min() == 100
    # 12 000 draws from 5..69: a mean of 37 with standard error 18.8 / sqrt(12000) = 0.17
    assert np.allclose(centres.mean((0, 1)), 37, atol=0.7)


# --- questions and answers


def test_answers_follow_from_the_pixels(test_split: SortOfClevr, train_split: SortOfClevr) -> None:
    # also: the colour bits mean the same in both splits, though colours differ in what is held out
    for data in (test_split, train_split):
        read = 0
        for index in range(300):
            seen = objects_seen(data.images[index])
            if seen is None:
                continue
            read += 1
            assert seen == objects_of(data, index)
            for question, answer in zip(data.questions[index], data.answers[index], strict=True):
                assert ANSWERS[answer] == slow_answer(seen, describe(question))
        assert read > 150


def test_answers_follow_from_the_objects_where_some_are_covered(test_split: SortOfClevr) -> None:
    for index in range(500):
        objects = objects_of(test_split, index)
        rows = zip(test_split.questions[index], test_split.answers[index], strict=True)
        assert all(ANSWERS[a] == slow_answer(objects, describe(q)) for q, a in rows)


def test_bits_of_a_question(test_split: SortOfClevr) -> None:
    questions, kinds = test_split.questions, test_split.kinds
    assert questions.shape == (2000, 20, 11)
    assert questions.max() == 1
    for part in (slice(0, 6), slice(6, 8), slice(8, 11)):
        assert (questions[..., part].sum(-1) == 1).all()
    assert (questions[:, :10, 6] == 1).all()
    assert (questions[:, 10:, 7] == 1).all()
    assert (kinds == 3 * questions[..., 7] + questions[..., 8:].argmax(-1)).all()
    # 40 000 draws: 6667 of each colour and kind, standard deviation 75
    for counts in (questions[..., :6].sum((0, 1)), np.bincount(kinds.ravel())):
        assert np.allclose(counts, 40_000 / 6, atol=350)


def test_each_image_has_its_own_shapes_and_questions(test_split: SortOfClevr) -> None:
    assert len({shapes.tobytes() for shapes in test_split.scene.shapes}) == 64
    assert len({questions.tobytes() for questions in test_split.questions}) == 2000
    assert len({centres.tobytes() for centres in test_split.scene.centres}) == 2000
    assert np.allclose(test_split.scene.shapes.mean(0), 0.5, atol=0.05)


def test_closest_is_another_object_however_far(test_split: SortOfClevr) -> None:
    """The authors' generator takes 999 for the squared distance of an object from itself."""
    closest = trapped = told_apart = 0
    for index, slot in np.argwhere(test_split.kinds == 3):
        objects = objects_of(test_split, index)
        x, y, shape = objects.pop(ORDER[test_split.questions[index, slot, :6].argmax()])
        nearest = min(objects.values(), key=lambda other: (other[0] - x) ** 2 + (other[1] - y) ** 2)
        closest += 1
        if (nearest[0] - x) ** 2 + (nearest[1] - y) ** 2 > 999:
            trapped += 1
            told_apart += nearest[2] != shape
            assert ANSWERS[test_split.answers[index, slot]] == nearest[2]
    assert trapped / closest == pytest.approx(0.068, abs=0.012)
    assert told_apart > 100


def test_ties_go_by_the_order_of_colours(test_split: SortOfClevr) -> None:
    tied = 0
    for index, slot in np.argwhere(test_split.kinds == 3):
        centres = test_split.scene.centres[index]
        asked = test_split.questions[index, slot, :6].argmax()
        distance = ((centres - centres[asked]) ** 2).sum(-1)
        first, second = sorted(set(range(6)) - {asked}, key=lambda c: distance[c])[:2]
        shapes = test_split.scene.shapes[index]
        if distance[first] == distance[second] and shapes[first] != shapes[second]:
            tied += 1
            assert test_split.answers[index, slot] == 2 + shapes[min(first, second)]
    assert tied > 3


def test_describe_refuses_what_is_no_question() -> None:
    for bits in (
        [0] * 11,
        [1] * 11,
        [1, 0, 0, 0, 0, 0, 1, 0, 1, 0],
        [2] + [0] * 5 + [1, 0, 1, 0, 0],
    ):
        with pytest.raises(ValueError, match="11 bits"):
            describe(bits)


# --- held out


def pairs(data: SortOfClevr) -> set[tuple[int, int]]:
    return {(c, int(s)) for shapes in data.scene.shapes for c, s in enumerate(shapes)}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_training_never_shows_what_is_held_out(split: Split) -> None:
    data = make_sort_of_clevr(300, seed=1, split=split, held_out=HELD_OUT)
    assert pairs(data) == {(c, s) for c in range(6) for s in range(2)} - set(HELD_OUT)
    assert not data.contains_held_out.any()
    assert not data.touches_held_out.any()
    for image in data.images[:50]:  # by the pixels, and all six colours are there
        seen = objects_seen(image)
        if seen is not None:
            forbidden = {(ORDER[c], ("rectangle", "circle")[s]) for c, s in HELD_OUT}
            assert not forbidden & {(name, shape) for name, (_, _, shape) in seen.items()}


def test_the_test_shows_all_twelve(test_split: SortOfClevr) -> None:
    assert len(pairs(test_split)) == 12
    # of three objects each has the shape held out half the time
    assert test_split.contains_held_out.mean() == pytest.approx(7 / 8, abs=0.03)


def test_questions_are_marked_that_concern_what_is_held_out(test_split: SortOfClevr) -> None:
    def is_held_out(name: str, shape: str) -> bool:
        return (ORDER.index(name), ("rectangle", "circle").index(shape)) in HELD_OUT

    for index in range(300):
        objects = objects_of(test_split, index)
        marked = {n for n, (_, _, shape) in objects.items() if is_held_out(n, shape)}
        assert test_split.contains_held_out[index] == bool(marked)
        for slot, question in enumerate(test_split.questions[index]):
            text = describe(question)
            name = next(n for n in ORDER if f" {n} " in text)
            concerned = {name}
            if "closest" in text or "furthest" in text:
                x, y, _ = objects[name]
                far = {
                    n: (o[0] - x) ** 2 + (o[1] - y) ** 2 for n, o in objects.items() if n != name
                }
                concerned.add((min if "closest" in text else max)(far, key=far.__getitem__))
            if "How many" in text:
                concerned = set(objects)
            assert test_split.touches_held_out[index, slot] == bool(concerned & marked), text


def test_holding_out_changes_only_the_shapes_concerned() -> None:
    plain = make_sort_of_clevr(50, seed=2, split="train")
    data = make_sort_of_clevr(50, seed=2, split="train", held_out=HELD_OUT)
    assert (plain.scene.centres == data.scene.centres).all()
    assert (plain.questions == data.questions).all()
    others = [1, 2, 4]
    assert (plain.scene.shapes[:, others] == data.scene.shapes[:, others]).all()


def test_held_out_combinations_of_a_seed_grow_and_leave_each_colour_a_shape() -> None:
    drawn = Counter[Combination]()
    for seed in range(300):
        three = held_out_combinations(3, seed)
        assert len({colour for colour, _ in three}) == 3
        assert held_out_combinations(2, seed) == three[:2]
        drawn.update(three)
    assert len(drawn) == 12
    assert min(drawn.values()) > 45  # 75 each, standard deviation 7.5
    assert held_out_combinations(0, 0) == ()


# --- the same every time


@pytest.mark.parametrize("split", SPLITS)
def test_an_image_depends_on_seed_split_and_index_alone(split: Split) -> None:
    few = make_sort_of_clevr(3, seed=7, split=split)
    many = make_sort_of_clevr(11, seed=7, split=split)
    for name in ("images", "questions", "answers", "kinds"):
        assert (getattr(few, name) == getattr(many, name)[:3]).all()


def test_seeds_and_splits_give_other_images() -> None:
    made = [make_sort_of_clevr(5, seed=s, split=p).images for s in (0, 1) for p in SPLITS]
    assert len({image.tobytes() for images in made for image in images}) == 30


# --- chance


def test_chance_levels(test_split: SortOfClevr) -> None:
    guesses = [chance_levels(test_split, (kind,))[0] for kind in range(6)]
    assert guesses == pytest.approx([1 / 2] * 5 + [1 / 6])
    assert chance_levels(test_split, NON_RELATIONAL)[0] == pytest.approx(0.5)
    assert chance_levels(test_split, RELATIONAL)[0] == pytest.approx(0.39, abs=0.005)
    # the most frequent count of five fair draws: 10 of 32
    frequent = chance_levels(test_split, (5,))[1]
    assert frequent == pytest.approx(10 / 32, abs=0.02)
    answered = test_split.answers[test_split.kinds == 5]
    assert set(answered.tolist()) == set(range(4, 10))
    binomial = np.array([1, 5, 10, 10, 5, 1]) / 32
    assert np.allclose(np.bincount(answered)[4:] / answered.size, binomial, atol=0.02)
    with pytest.raises(ValueError, match="got none"):
        chance_levels(test_split, ())


# --- mistakes


def test_mistakes_are_told_in_one_line() -> None:
    for number, seed, split, held_out, message in (
        (0, 0, "train", (), "num_images must be 1 or more; got 0"),
        (1, -1, "train", (), "seed must be 0 or more; got -1"),
        (1, 0, "dev", (), "split must be one of train, validation, test; got 'dev'"),
        (1, 0, "train", [(6, 0)], r"held_out must hold pairs .* got \(6, 0\)"),
        (1, 0, "train", [(2, 0), (2, 1)], "must leave each colour a shape; got both for blue"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            make_sort_of_clevr(number, seed=seed, split=split, held_out=held_out)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    for count in (-1, 7):
        with pytest.raises(ValueError, match=r"number must lie in \[0, 6\]"):
            held_out_combinations(count, 0)


def test_importing_the_data_imports_no_torch() -> None:
    code = "import sys, experiments.data; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout == "[]\n"
