"""Data of the sequence tasks, against what is true of them however they are made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.data.algorithmic import BLANK, adding_sequences, copying_sequences
from experiments.data.bouncing_balls import (
    Balls,
    advance,
    draw_curtains,
    draw_frames,
    simulate,
)
from experiments.data.pixel_sequences import pixel_order, pixel_sequences, resize_nearest
from experiments.data.stacked_mnist import shrink
from experiments.data.text import END, UNKNOWN, pieces, read_corpus, to_columns, to_lines


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Copying ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blanks", "items", "alphabet"), [(50, 10, 8), (1, 3, 2), (7, 1, 5)])
def test_recall_is_what_was_shown_that_many_steps_before(
    blanks: int, items: int, alphabet: int
) -> None:
    inputs, targets = copying_sequences(11, blanks, rng(), items=items, alphabet=alphabet)
    assert inputs.shape == targets.shape == (blanks + 2 * items, 11)
    np.testing.assert_array_equal(targets[items + blanks :], inputs[:items])
    assert (targets[: items + blanks] == BLANK).all()
    assert (inputs[:items] >= 1).all()
    assert (inputs[:items] <= alphabet).all()


def test_nothing_of_the_answer_is_shown_after_the_symbols() -> None:
    first, second = (copying_sequences(40, 20, rng(seed)).inputs for seed in (0, 1))
    assert not np.array_equal(first[:10], second[:10])
    np.testing.assert_array_equal(first[10:], second[10:])
    behind = first[10:, 0]
    assert behind[19] == 9
    assert (np.delete(behind, 19) == BLANK).all()


def test_symbols_are_drawn_evenly() -> None:
    symbols = copying_sequences(5000, 1, rng()).inputs[:10]
    counts = np.bincount(symbols.ravel(), minlength=10)
    assert counts[0] == counts[9] == 0
    assert abs(counts[1:9] / symbols.size - 1 / 8).max() < 0.01  # six deviations


# Adding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 5, 50])
def test_targets_are_the_sums_of_the_marked_numbers(length: int) -> None:
    inputs, targets = adding_sequences(300, length, rng())
    numbers, marks = inputs[..., 0], inputs[..., 1]
    assert set(np.unique(marks)) <= {0.0, 1.0}
    for column in range(300):
        first, second = np.flatnonzero(marks[:, column])
        assert first < length // 2 <= second
        assert targets[column] == numbers[first, column] + numbers[second, column]
    assert (numbers >= 0).all()
    assert (numbers < 1).all()


def test_error_of_the_mean_is_a_sixth() -> None:
    _, targets = adding_sequences(100_000, 10, rng())
    assert ((targets - 1) ** 2).mean() == pytest.approx(1 / 6, rel=0.02)


# Pixels -----------------------------------------------------------------------------------------


def test_resizing_is_that_of_stacked_digits_and_keeps_what_fits() -> None:
    images = rng().integers(0, 256, (3, 28, 28), np.uint8)
    np.testing.assert_array_equal(resize_nearest(images, 16, 16), shrink(images))
    np.testing.assert_array_equal(resize_nearest(images, 14, 14), images[:, ::2, ::2])
    np.testing.assert_array_equal(resize_nearest(images, 28, 28), images)
    assert resize_nearest(images, 5, 7).shape == (3, 5, 7)


def test_pixels_come_row_by_row_and_rows_from_top_to_bottom() -> None:
    images = np.zeros((2, 28, 28), np.uint8)
    images[0, 0, 26] = 128  # the last pixel of the first row that is kept
    images[1, 2] = 127  # not quite white
    images[1, 4] = 255
    pixels = pixel_sequences(images, 14, "pixel", trained_side=14)
    assert pixels.shape == (196, 2, 1)
    assert np.flatnonzero(pixels[:, 0, 0]).tolist() == [13]
    assert np.flatnonzero(pixels[:, 1, 0]).tolist() == list(range(28, 42))
    rows = pixel_sequences(images, 14, "row", trained_side=14)
    np.testing.assert_array_equal(rows.swapaxes(0, 1).reshape(2, 196), pixels[..., 0].T)
    assert pixel_sequences(images, 24, "row", trained_side=14).shape == (24, 2, 14)


def test_permutation_is_one_and_grows_with_the_image() -> None:
    images = rng().integers(0, 256, (4, 28, 28), np.uint8)
    plain = pixel_sequences(images, 14, "pixel", trained_side=14)[..., 0]
    shuffled = pixel_sequences(images, 14, "permuted", trained_side=14, seed=3)[..., 0]
    order = pixel_order(14, 14, 3)
    assert sorted(order) == list(range(196))
    np.testing.assert_array_equal(shuffled, plain[order])
    assert not np.array_equal(order, pixel_order(14, 14, 4))
    larger = pixel_order(28, 14, 3)  # each pixel of 14 is four of 28
    row, column = larger // 28 // 2, larger % 28 // 2
    np.testing.assert_array_equal((row * 14 + column)[::4], order)
    assert sorted(pixel_order(19, 14, 3)) == list(range(361))


# Balls ------------------------------------------------------------------------------------------


def energy(balls: Balls) -> NDArray[np.float64]:
    """(M, T)."""
    found: NDArray[np.float64] = np.einsum("mn,mtna->mt", balls.masses / 2, balls.velocities**2)
    return found


@pytest.mark.parametrize("masses", ["equal", "different"])
@pytest.mark.parametrize("number", [1, 4, 8])
def test_energy_is_kept(masses: Any, number: int) -> None:
    balls = simulate(6, 80, number, rng(), masses=masses)
    found = energy(balls)
    np.testing.assert_allclose(found, found[:, :1].repeat(80, 1), rtol=1e-10)
    assert (np.ptp(balls.masses) > 0) == (masses == "different")


def test_balls_stay_in_the_box_and_hit_each_other() -> None:
    balls = simulate(10, 100, 6, rng(), masses="different")
    wall = balls.radii[:, None, :, None]
    slack = 0.05 / 10 * 3  # of one substep, at three times the speed of the start
    assert (balls.positions > wall - slack).all()
    assert (balls.positions < 1 - wall + slack).all()
    speed = np.sqrt((balls.velocities**2).sum(-1))
    np.testing.assert_allclose(speed[:, 0], 0.05)
    assert (abs(speed[:, -1] - 0.05) > 1e-3).mean() > 0.9


def test_balls_do_not_begin_in_each_other() -> None:
    balls = simulate(50, 1, 8, rng(), masses="different")
    between = balls.positions[:, 0, :, None] - balls.positions[:, 0, None]
    distance = np.sqrt((between**2).sum(-1)) + 10 * np.eye(8)
    assert (distance > balls.radii[:, :, None] + balls.radii[:, None]).all()


@pytest.mark.parametrize("masses", [(1.0, 1.0), (1.0, 3.0)])
def test_collision_is_the_one_of_the_textbook(masses: tuple[float, float]) -> None:
    place = np.array([[[0.5, 0.40], [0.5, 0.58]]])
    motion = np.array([[[0.01, 0.06], [-0.02, 0.0]]])  # head on along x; y does not take part
    weight, before = np.array([masses]), motion.copy()
    advance(place, motion, np.full((1, 2), 0.1), weight, 0.0)
    m, n = masses
    expected = ((m - n) / (m + n) * 0.06, 2 * m / (m + n) * 0.06)
    np.testing.assert_allclose(motion[0, :, 1], expected, atol=1e-15)
    np.testing.assert_array_equal(motion[..., 0], before[..., 0])
    momentum = [(weight[..., None] * v).sum(1) for v in (before, motion)]
    np.testing.assert_allclose(momentum[0], momentum[1])
    advance(place, motion, np.full((1, 2), 0.1), weight, 0.0)  # they go apart now
    np.testing.assert_allclose(motion[0, :, 1], expected, atol=1e-15)


def test_oblique_collisions_keep_momentum_and_energy() -> None:
    draw = rng()
    place = np.stack([np.full((40, 2), 0.5), draw.uniform(0.45, 0.55, (40, 2))], axis=1)
    motion, weight = draw.normal(size=(40, 2, 2)), draw.uniform(1, 5, (40, 2))
    before = motion.copy()
    advance(place, motion, np.full((40, 2), 0.1), weight, 0.0)
    hit = (motion != before).any((1, 2))
    assert 10 < hit.sum() < 30
    for kept in ("mn,mna->ma", "mn,mna,mna->m"):  # momentum, twice the energy
        first, last = (np.einsum(kept, weight, *[v] * kept.count("mna")) for v in (before, motion))
        np.testing.assert_allclose(first, last, atol=1e-12)


def test_what_finds_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"9 balls of radius 0.3 must find room"):
        simulate(1, 1, 9, rng(), radius=0.3)
    with pytest.raises(ValueError, match="masses must be one of equal, different; got 'light'"):
        simulate(1, 1, 1, rng(), masses="light")  # type: ignore[arg-type]


def test_frame_is_a_disc_of_the_right_area_at_the_right_place() -> None:
    balls = Balls(
        np.array([[[[0.25, 0.625]]]]), np.zeros((1, 1, 1, 2)), np.full((1, 1), 0.2), np.ones((1, 1))
    )
    frame = draw_frames(balls, 64)[0, 0] / 255
    assert frame.sum() == pytest.approx(math.pi * (0.2 * 64) ** 2, rel=0.01)
    middle = (np.arange(64) + 0.5) / 64
    centre = [frame.sum(axis) @ middle / frame.sum() for axis in (1, 0)]
    assert centre == pytest.approx([0.25, 0.625], abs=1e-3)


def test_curtains_are_squares_of_half_the_side_at_different_places() -> None:
    curtains = draw_curtains(50, 9, rng())
    places = set()
    for curtain in curtains:
        y, x = np.nonzero(curtain)
        assert len(y) == 16
        assert int(np.ptp(y)) == int(np.ptp(x)) == 3
        places.add((int(y.min()), int(x.min())))
    assert len(places) > 15
    assert {y for y, _ in places} == {x for _, x in places} == set(range(6))


# Text -------------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    path = folder / "a.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_characters_come_back_from_their_numbers(tmp_path: Path) -> None:
    text = "".join(rng().choice(list("abcde \né"), 500))
    corpus = read_corpus(written(tmp_path, text), "char")
    names = {i + 2: name for i, name in enumerate(corpus.vocabulary)}
    parts = (corpus.train, corpus.validation, corpus.test)
    assert "".join(names[int(i)] for part in parts for i in part) == text
    assert [len(part) for part in parts] == [400, 50, 50]
    assert names[corpus.line_end] == "\n"
    lines = to_lines(corpus.train, corpus.line_end)
    told = ["".join(names[int(i)] for i in line) for line in lines]
    assert told == text[:400].splitlines(keepends=True)


def test_words_know_what_training_showed_often_enough(tmp_path: Path) -> None:
    text = "a b a c\n" * 16 + "d a\n" * 8
    corpus = read_corpus(written(tmp_path, text), "word", vocabulary=2)
    assert corpus.vocabulary == ("a", "b")
    assert corpus.size == 4
    assert corpus.line_end == END
    assert corpus.train[:5].tolist() == [2, 3, 2, UNKNOWN, END]
    assert corpus.test[-3:].tolist() == [UNKNOWN, 2, END]


def test_text_without_lines_can_be_read_and_one_that_cannot_is_one_line(tmp_path: Path) -> None:
    corpus = read_corpus(written(tmp_path, "ab" * 50), "char")
    assert [line.tolist() for line in to_lines(corpus.test, corpus.line_end)] == [[2, 3] * 5]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    for path, told in (
        (tmp_path / "none.txt", "No such file"),
        (tmp_path / "b.txt", "cannot be read as UTF-8"),
        (written(tmp_path, "short"), "at least 20 tokens"),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            read_corpus(path, "char")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("tokens", "columns", "steps"), [(100, 3, 7), (40, 5, 100), (6, 3, 1)])
def test_pieces_of_columns_tell_every_token_of_them_once(
    tokens: int, columns: int, steps: int
) -> None:
    text = np.arange(tokens)
    table = to_columns(text, columns)
    length = tokens // columns
    np.testing.assert_array_equal(table.T.ravel(), text[: length * columns])
    told = [table[begin + 1 : end + 1] for begin, end in pieces(length, steps)]
    np.testing.assert_array_equal(np.concatenate(told), table[1:])
    assert max(len(piece) for piece in told) <= steps


def test_columns_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens must fill 3 columns"):
        to_columns(np.arange(5), 3)
