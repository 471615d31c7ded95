"""Crop, flip, mixup and occlusion: geometry, probabilities, and inputs left as they are."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.data.augment import (
    crop_and_flip,
    draw_mixup,
    occlude,
    occlusion_boxes,
    random_crop,
    random_flip,
)


def numbered(total: int, height: int, width: int) -> np.ndarray:
    """Images whose every pixel tells its place, from 1 on."""
    y, x = np.mgrid[:height, :width]
    return np.broadcast_to(
        np.stack([y + 1, x + 1, 0 * x + 7], -1), (total, height, width, 3)
    ).copy()


def test_crop_moves_the_image_by_up_to_its_padding() -> None:
    images = numbered(4000, 7, 5)
    cropped = random_crop(images, np.random.default_rng(0), padding=2)
    assert (images == numbered(4000, 7, 5)).all()
    # pixel (3, 2) is never cut off by two pixels of shift: where it went tells the shift
    where = np.argwhere((cropped[..., 0] == 4) & (cropped[..., 1] == 3))
    assert (where[:, 0] == np.arange(4000)).all()
    shifts = where[:, 1:] - [3, 2]
    for index in range(100):
        dy, dx = shifts[index]
        for y in range(7):
            for x in range(5):
                inside = 0 <= y - dy < 7 and 0 <= x - dx < 5
                expected = images[index, y - dy, x - dx] if inside else np.zeros(3)
                assert (cropped[index, y, x] == expected).all()
    counts = np.unique(shifts, axis=0, return_counts=True)[1]
    assert len(counts) == 25
    assert np.abs(counts - 160).max() < 65  # five standard deviations


def test_flip_mirrors_half_of_the_images() -> None:
    images = numbered(2000, 3, 5)
    flipped = random_flip(images, np.random.default_rng(0))
    same = (flipped == images).all((1, 2, 3))
    assert (flipped[~same] == images[~same][:, :, ::-1]).all()
    assert same.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_dtype_shape_and_determinism(dtype: type[np.generic]) -> None:
    images = numbered(6, 32, 32).astype(dtype)
    for change in (random_crop, random_flip, crop_and_flip, occlude):
        first, second = (change(images, np.random.default_rng(1)) for _ in range(2))
        assert first.dtype == dtype
        assert first.shape == images.shape
        assert (first == second).all()
        assert (images == numbered(6, 32, 32)).all()
        assert not np.shares_memory(first, images)


def test_mixup_mixes_as_its_law_says() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_mixup(17, rng, alpha=0.5) for _ in range(2000)]
    for lam, permutation in drawn:
        assert 0 <= lam <= 1
        assert sorted(permutation.tolist()) == list(range(17))
    lams = np.array([lam for lam, _ in drawn])
    assert lams.mean() == pytest.approx(0.5, abs=0.03)
    assert lams.var() == pytest.approx(1 / 8, abs=0.01)  # of Beta(a, a): 1 / (4 (2 a + 1))
    uniform = np.array([draw_mixup(2, rng).lam for _ in range(2000)])
    assert uniform.var() == pytest.approx(1 / 12, abs=0.01)


def test_boxes_lie_around_uniform_centres_and_are_cut_at_the_border() -> None:
    boxes = occlusion_boxes(60_000, 32, 24, np.random.default_rng(0))
    for low, high, size in ((boxes.top, boxes.bottom, 32), (boxes.left, boxes.right, 24)):
        # Slow way: each centre c covers c - 8 .. c + 7, as far as inside
        slow = [(max(0, c - 8), min(size, c + 8)) for c in range(size)]
        found, counts = np.unique(np.stack([low, high], 1), axis=0, return_counts=True)
        assert found.tolist() == sorted(map(list, slow))
        assert np.abs(counts / 60_000 - 1 / size).max() < 0.005


def test_occlude_covers_one_box_and_nothing_else() -> None:
    images = np.full((500, 32, 32, 3), 200, np.uint8)
    covered = occlude(images, np.random.default_rng(3), size=16)
    boxes = occlusion_boxes(500, 32, 32, np.random.default_rng(3), size=16)
    for index, (top, bottom, left, right) in enumerate(zip(*boxes, strict=True)):
        expected = images[index].copy()
        expected[top:bottom, left:right] = 0
        assert (covered[index] == expected).all()
    # mean side of a cut box: (32 * 16 - (8 + 7 + ... + 1) - (7 + ... + 1)) / 32 = 14
    assert (covered == 0).mean() == pytest.approx((14 / 32) ** 2, abs=0.01)


def test_occlude_sizes_and_fill() -> None:
    images = numbered(3, 9, 9)
    rng = np.random.default_rng(0)
    assert (occlude(images, rng, size=18) == 0).all()  # from any centre over all of it
    assert ((occlude(images, rng, size=1) == 0).all(-1).sum((1, 2)) == 1).all()
    sides = occlusion_boxes(200, 99, 99, rng, size=5)
    assert (sides.bottom - sides.top).max() == 5
    filled = occlude(np.zeros((2, 9, 9, 3)), rng, size=18, fill=[0.25, 0.5, 0.75])
    assert (filled == [0.25, 0.5, 0.75]).all()


def test_mistakes() -> None:
    rng = np.random.default_rng(0)
    images = numbered(1, 4, 4)
    with pytest.raises(ValueError, match="padding must be 0 or more; got -1"):
        random_crop(images, rng, padding=-1)
    with pytest.raises(ValueError, match="size must be 1 or more; got 0"):
        occlude(images, rng, size=0)
    with pytest.raises(ValueError, match="alpha must be 0 or more; got nan"):
        draw_mixup(3, rng, alpha=float("nan"))
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        draw_mixup(0, rng)
