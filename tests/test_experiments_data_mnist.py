"""MNIST files, whole and damaged, their download, and stacked MNIST."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.data.common import LabelledImages, hold_out
from experiments.data.published import mnist
from experiments.data.published.mnist import download_mnist, load_mnist, read_idx
from experiments.data.stacked_mnist import evaluation_set, shrink, stack_digits, train_batches


def make_digits(total: int) -> LabelledImages:
    """Images that differ in every pixel, labels 0 to 9 in turn."""
    images = np.random.default_rng(total).integers(1, 256, (total, 28, 28), dtype=np.uint8)
    return LabelledImages(images, np.arange(total) % 10)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write(folder: Path, prefix: str, digits: LabelledImages, *, zipped: bool = True) -> None:
    for name, array in (("images-idx3", digits.images), ("labels-idx1", digits.labels)):
        path = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"must|cannot") as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- reading


@pytest.mark.parametrize("zipped", [True, False])
def test_published_splits(tmp_path: Path, zipped: bool) -> None:
    write(tmp_path, "train", make_digits(30), zipped=zipped)
    write(tmp_path, "t10k", make_digits(20), zipped=zipped)
    for split, total in (("train", 30), ("test", 20)):
        images, labels = load_mnist(str(tmp_path), split)  # type: ignore[arg-type]
        assert (images == make_digits(total).images).all()
        assert (labels == make_digits(total).labels).all()
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64


def test_a_name_without_gz_may_be_compressed_and_the_other_way_round(tmp_path: Path) -> None:
    write(tmp_path, "t10k", make_digits(20))
    images = tmp_path / "t10k-images-idx3-ubyte.gz"
    images.rename(tmp_path / "t10k-images-idx3-ubyte")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(make_digits(20).labels))
    assert len(load_mnist(tmp_path, "train").labels) == 16


def test_a_folder_with_the_t10k_files_alone_is_split(tmp_path: Path) -> None:
    whole = make_digits(50)
    write(tmp_path, "t10k", whole)
    train, test = load_mnist(tmp_path, "train"), load_mnist(tmp_path, "test")
    assert (len(train.labels), len(test.labels)) == (40, 10)
    images = {image.tobytes() for part in (train, test) for image in part.images}
    assert images == {image.tobytes() for image in whole.images}
    by_image = {i.tobytes(): n for i, n in zip(whole.images, whole.labels, strict=True)}
    for part in (train, test):
        assert [by_image[image.tobytes()] for image in part.images] == part.labels.tolist()
    assert (load_mnist(tmp_path, "test").images == test.images).all()


def test_half_of_the_training_files_is_a_mistake_not_a_small_mnist(tmp_path: Path) -> None:
    write(tmp_path, "train", make_digits(30))
    write(tmp_path, "t10k", make_digits(30))
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    message = refusal(lambda: load_mnist(tmp_path, "train"))
    assert str(tmp_path) in message
    assert "missing: train-labels-idx1-ubyte." in message
    assert len(load_mnist(tmp_path, "test").labels) == 30


def test_hold_out_parts_and_mistakes() -> None:
    whole = make_digits(100)
    rest, part = hold_out(whole, 0.1, seed=4)
    again = hold_out(whole, 0.1, seed=4)[1]
    assert (part.images == again.images).all()
    assert (len(rest.labels), len(part.labels)) == (90, 10)
    assert not (hold_out(whole, 0.1, seed=5)[1].images == part.images).all()
    for fraction in (0.0, 1.0, 0.001, -0.5):
        refusal(lambda f=fraction: hold_out(whole, f))  # type: ignore[misc]


# --- damage

GOOD = idx(make_digits(20).images)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "got nothing"),
        (GOOD[:10], r"got 0 bytes"),
        (GOOD[:-1], r"\(20, 28, 28\); got 15679 bytes"),
        (GOOD + b"0", "got 15681 bytes"),
        (b"\0\0\x0d\x03" + GOOD[4:], "begin with 00000803.*got 00000d03"),
        (idx(make_digits(20).labels), "begin with 00000803.*got 00000801"),
        (gzip.compress(GOOD, mtime=0)[:-20], "cannot be read"),
        (gzip.compress(GOOD, mtime=0)[:5], "cannot be read"),
        (gzip.compress(GOOD, mtime=0)[:-6] + b"\0" * 6, "cannot be read"),  # its checksum
        (b"\x1f\x8b" + GOOD, "cannot be read"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "got 0 bytes"),  # sizes beyond any memory
        (b"<html>not found</html>", "begin with 00000803"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, problem: str) -> None:
    write(tmp_path, "t10k", make_digits(20))
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=problem) as caught:
        load_mnist(tmp_path, "train")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_and_labels_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path, "t10k", make_digits(20)._replace(labels=np.arange(19) % 10))
    assert "got images (20, 28, 28), 19 labels" in refusal(lambda: load_mnist(tmp_path, "test"))
    write(tmp_path, "t10k", make_digits(20)._replace(labels=np.arange(20)))
    assert "labels up to 19" in refusal(lambda: load_mnist(tmp_path, "test"))
    write(tmp_path, "t10k", LabelledImages(np.zeros((20, 27, 28), np.uint8), np.zeros(20, int)))
    assert "(20, 27, 28)" in refusal(lambda: load_mnist(tmp_path, "test"))


def test_an_unknown_split(tmp_path: Path) -> None:
    message = refusal(lambda: load_mnist(tmp_path, "valid"))  # type: ignore[arg-type]
    assert message == "load_mnist: split must be one of train, test; got 'valid'."


# --- download


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder served by file URLs in place of the real mirror, with the sums of its files."""
    source = tmp_path / "mirror"
    source.mkdir()
    write(source, "train", make_digits(30))
    write(source, "t10k", make_digits(20))
    sums = {n: hashlib.sha256((source / f"{n}.gz").read_bytes()).hexdigest() for n in mnist.FILES}
    monkeypatch.setattr(mnist, "FILES", sums)
    monkeypatch.setattr(mnist, "URL", f"{source.as_uri()}/")
    return source


def test_download_fetches_what_is_missing(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert len(load_mnist(folder, "train", download=True).labels) == 30
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{n}.gz" for n in mnist.FILES)
    (mirror / "t10k-labels-idx1-ubyte.gz").unlink()  # not needed any more
    assert len(load_mnist(folder, "test", download=True).labels) == 20


def test_nothing_is_fetched_unless_asked(mirror: Path, tmp_path: Path) -> None:
    message = refusal(lambda: load_mnist(tmp_path / "new", "train"))
    assert "missing: both. Fetch them with download=True (--download), or copy" in message
    assert not (tmp_path / "new").exists()


def test_a_download_with_other_content_is_not_kept(mirror: Path, tmp_path: Path) -> None:
    (mirror / "t10k-images-idx3-ubyte.gz").write_bytes(b"<html>blocked</html>")
    folder = tmp_path / "new"
    assert "t10k-images-idx3-ubyte.gz must have the published SHA-256" in refusal(
        lambda: download_mnist(folder)
    )
    assert sorted(p.name for p in folder.iterdir()) == [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]


def test_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "URL", "http://127.0.0.1:9/")  # nobody listens
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    message = refusal(lambda: load_mnist(tmp_path / "new", "test", download=True))
    assert message.startswith("download_mnist: cannot fetch http://127.0.0.1:9/train-images")
    assert not (tmp_path / "new").exists()


def test_download_into_what_is_no_folder(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot write train-images" in refusal(lambda: download_mnist(tmp_path / "file"))


# --- stacked digits


@pytest.fixture(scope="module")
def digits() -> LabelledImages:
    return make_digits(40)


def test_shrink_takes_the_nearest_pixel_by_the_floor_rule(digits: LabelledImages) -> None:
    small = shrink(digits.images)
    assert small.shape == (40, 16, 16)
    for y in range(16):
        for x in range(16):
            assert (small[:, y, x] == digits.images[:, int(y * 1.75), int(x * 1.75)]).all()


@pytest.mark.parametrize("num_digits", [1, 2, 3, 4, 5])
def test_stack_is_the_maximum_of_pasted_digits(digits: LabelledImages, num_digits: int) -> None:
    images, targets = stack_digits(digits, num_digits, 50, np.random.default_rng(1))
    drawn = np.random.default_rng(1).integers([40, 49, 49], size=(50, num_digits, 3))
    small = shrink(digits.images)
    for index in range(50):
        expected = np.zeros((64, 64), np.uint8)
        for digit, top, left in drawn[index]:
            frame = np.zeros_like(expected)
            frame[top : top + 16, left : left + 16] = small[digit]
            expected = np.maximum(expected, frame)
        assert (images[index] == expected).all()
        classes = {int(digits.labels[digit]) for digit in drawn[index, :, 0]}
        assert np.nonzero(targets[index])[0].tolist() == sorted(classes)


def test_places_and_classes_are_uniform(digits: LabelledImages) -> None:
    images, targets = stack_digits(digits, 1, 20_000, np.random.default_rng(0))
    assert (np.count_nonzero(images, axis=(1, 2)) == 256).all()  # wholly inside
    for axis in (1, 2):
        start = images.any(axis=axis).argmax(-1)  # 0 to 48, 408 each, deviation 20
        counts = np.bincount(start, minlength=49)
        assert counts.shape == (49,)
        assert np.abs(counts - 20_000 / 49).max() < 100
    assert np.abs(targets.sum(0, dtype=int) - 2000).max() < 220
    # of three digits of ten classes, all differ with probability 0.9 * 0.8
    three = stack_digits(digits, 3, 5000, np.random.default_rng(0)).targets.sum(1)
    assert (three == 3).mean() == pytest.approx(0.72, abs=0.03)


def test_batches_take_the_counts_in_turn(digits: LabelledImages) -> None:
    batches = list(train_batches(digits, (1, 5), batch_size=7, num_batches=6, seed=0))
    assert [b.images.shape for b in batches] == [(7, 64, 64)] * 6
    ink = [int(np.count_nonzero(b.images, axis=(1, 2)).max()) for b in batches]
    assert ink[::2] == [256] * 3
    assert min(ink[1::2]) > 4 * 256
    assert len({b.images.tobytes() for b in batches}) == 6
    again = list(train_batches(digits, (1, 5), batch_size=7, num_batches=4, seed=0))
    for first, second in zip(batches, again, strict=False):
        assert (first.images == second.images).all()
        assert (first.targets == second.targets).all()
    other = next(train_batches(digits, (1, 5), batch_size=7, num_batches=1, seed=1))
    assert not (other.images == batches[0].images).all()


def test_evaluation_sets_are_fixed_and_apart_from_training(digits: LabelledImages) -> None:
    few = evaluation_set(digits, 3, num_images=5, seed=0)
    many = evaluation_set(digits, 3, num_images=9, seed=0)
    assert (few.images == many.images[:5]).all()
    assert (few.targets == many.targets[:5]).all()
    one = evaluation_set(digits, 1, num_images=5, seed=0)
    trained = next(train_batches(digits, (1,), batch_size=5, num_batches=1, seed=0))
    assert not (one.images == trained.images).all((1, 2)).any()


def test_digits_that_are_shrunk_already_stay_as_they_are(digits: LabelledImages) -> None:
    small = LabelledImages(shrink(digits.images), digits.labels)
    whole = evaluation_set(digits, 2, num_images=4, seed=0)
    assert (evaluation_set(small, 2, num_images=4, seed=0).images == whole.images).all()


def test_mistakes_in_stacking(digits: LabelledImages) -> None:
    rng = np.random.default_rng(0)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: stack_digits(digits, 0, 1, rng), "num_digits must be 1 or more"),
        (lambda: evaluation_set(digits, 2, num_images=0, seed=0), "num_images must be 1 or more"),
        (lambda: evaluation_set(digits, 2, num_images=1, seed=-1), "seed must be 0 or more"),
        (lambda: train_batches(digits, (), batch_size=1, num_batches=1, seed=0), "counts must"),
        (lambda: train_batches(digits, (0,), batch_size=1, num_batches=1, seed=0), "counts must"),
        (lambda: train_batches(digits, (1,), batch_size=0, num_batches=1, seed=0), "batch_size"),
    ]
    for call, message in calls:
        assert message in refusal(call)


# --- more than there can be


def bomb(total: int) -> bytes:
    """So many zeros packed by gzip, a thousandth of them; in parts, which a reader joins."""
    part = gzip.compress(bytes(1 << 20), 9)
    return part * (total >> 20)


@pytest.mark.parametrize(
    ("promised", "told"),
    [
        (2, "must hold as many values as its header says, (2,); got 3 bytes"),
        (2**31, "its header tells of 2,147,483,648 values, more than 1,073,741,824"),
    ],
)
def test_file_that_unpacks_to_more_than_it_may_is_not_unpacked(
    tmp_path: Path, promised: int, told: str
) -> None:
    path = tmp_path / "labels.gz"
    header = bytes([0, 0, 8, 1]) + promised.to_bytes(4, "big")
    path.write_bytes(gzip.compress(header) + bomb(256 << 20))
    tracemalloc.start()
    try:
        assert told in refusal(lambda: read_idx(path, 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 << 20


def test_file_on_disk_that_is_larger_than_any_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "it has 1,099,511,627,776 bytes, more than" in refusal(lambda: read_idx(path, 1))
