"""Tiny ImageNet from small folders and zip files of its true layout."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data.published import tiny_imagenet
from experiments.data.published.tiny_imagenet import load_tiny_imagenet

WNIDS = ["n02", "n10", "n01"]  # the order of wnids.txt, not of the alphabet, gives the labels


def jpeg(value: tuple[int, int, int] | int, size: int = 64) -> bytes:
    """An image of one colour, which JPEG keeps to within a few levels."""
    mode = "L" if isinstance(value, int) else "RGB"
    file = io.BytesIO()
    Image.new(mode, (size, size), value).save(file, "JPEG", quality=95)
    return file.getvalue()


def tiny() -> dict[str, bytes]:
    """Path -> content: three classes with two training images each, four validation images."""
    files = {"wnids.txt": "\n".join(WNIDS).encode() + b"\n", "words.txt": b"n01\tgoldfish\n"}
    for label, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"n01_0.JPEG\t0\t10\t63\t58\n"
        files[f"train/{wnid}/images/{wnid}_0.JPEG"] = jpeg((50 * label, 100, 200))
        files[f"train/{wnid}/images/{wnid}_1.JPEG"] = jpeg(40 + 50 * label)
    listed = [("val_3", "n01"), ("val_0", "n02"), ("val_10", "n10"), ("val_1", "n02")]
    rows = [f"{file}.JPEG\t{wnid}\t0\t32\t44\t62\n" for file, wnid in listed]
    files["val/val_annotations.txt"] = "".join(rows).encode()
    for position, (file, _) in enumerate(listed):
        files[f"val/images/{file}.JPEG"] = jpeg((60 * position, 0, 0))
    files["test/images/test_0.JPEG"] = jpeg((1, 2, 3))
    return files


def unpack(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pack(archive: Path, files: dict[str, bytes], prefix: str = "tiny-imagenet-200/") -> Path:
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in files.items():
            opened.writestr(prefix + name, content)
    return archive


def places(tmp_path: Path) -> list[Path]:
    (tmp_path / "zipped").mkdir()
    return [
        unpack(tmp_path / "data" / "tiny-imagenet-200", tiny()),
        tmp_path / "data",
        pack(tmp_path / "zipped" / "tiny-imagenet-200.zip", tiny()),
        tmp_path / "zipped",
        pack(tmp_path / "other.zip", tiny(), prefix=""),
    ]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match="load_tiny_imagenet: ") as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_training_images(tmp_path: Path) -> None:
    for path in places(tmp_path):
        images, labels = load_tiny_imagenet(path, "train")
        assert images.shape == (6, 64, 64, 3)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        assert labels.tolist() == [2, 2, 0, 0, 1, 1]  # sorted by name: n01, n02, n10
        for image, label in zip(images[::2], labels[::2], strict=True):
            assert np.abs(image.astype(int) - (50 * label, 100, 200)).max() < 6
        for image, label in zip(images[1::2], labels[1::2], strict=True):
            assert (image == image[..., :1]).all()  # grey
            assert np.abs(image.astype(int) - (40 + 50 * label)).max() < 6


def test_the_validation_images_are_the_test(tmp_path: Path) -> None:
    for path in places(tmp_path):
        images, labels = load_tiny_imagenet(path, "test")
        # val_0, val_1, val_10, val_3: second, fourth, third and first of the list
        assert labels.tolist() == [0, 0, 1, 2]
        red = images[..., 0].mean((1, 2))
        assert np.allclose(red, [60, 180, 120, 0], atol=6)


def test_rows_run_from_top_to_bottom_and_columns_from_left_to_right(tmp_path: Path) -> None:
    drawn = np.zeros((64, 64, 3), np.uint8)
    drawn[:32] = (200, 0, 0)
    drawn[:, 32:, 2] = 200
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "JPEG", quality=95)
    files = tiny()
    files["train/n01/images/n01_0.JPEG"] = file.getvalue()
    image = load_tiny_imagenet(unpack(tmp_path, files), "train").images[0]
    for y, x in ((5, 5), (5, 58), (58, 5), (58, 58)):
        assert np.abs(image[y, x].astype(int) - drawn[y, x]).max() < 12


@pytest.mark.parametrize(
    ("name", "content", "split", "told"),
    [
        ("train/n10/images/n10_0.JPEG", b"\xff\xd8 no image", "train", "n10_0.JPEG must be a JPEG"),
        ("train/n10/images/n10_0.JPEG", jpeg(0)[:200], "train", "n10_0.JPEG must be a JPEG"),
        ("train/n10/images/n10_0.JPEG", b"", "train", "n10_0.JPEG must be a JPEG"),
        ("train/n10/images/n10_0.JPEG", jpeg(0, 32), "train", "got 32 x 32 pixels"),
        ("wnids.txt", b"n02\nn10\nn01\nn77\n", "train", "1 of 4 are without, n77"),
        ("wnids.txt", b"", "train", "none listed"),
        ("val/val_annotations.txt", b"", "test", "none listed"),
        ("val/val_annotations.txt", b"val_0.JPEG n02\n", "test", "'val_0.JPEG n02'"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn99\t0\n", "test", "n99"),
        ("val/val_annotations.txt", b"../../x.JPEG\tn02\t0\n", "test", "x.JPEG"),
        ("val/val_annotations.txt", b"val_7.JPEG\tn02\t0\n", "test", "1 of 1 are missing"),
        ("val/val_annotations.txt", None, "test", "must hold val/val_annotations.txt"),
    ],
)
def test_damage_is_told(
    tmp_path: Path, name: str, content: bytes | None, split: str, told: str
) -> None:
    files = tiny()
    if content is None:
        del files[name]
    else:
        files[name] = content
    for path in (unpack(tmp_path / "folder", files), pack(tmp_path / "file.zip", files)):
        message = refusal(lambda at=path: load_tiny_imagenet(at, split))  # type: ignore[misc, arg-type]
        assert told in message
        assert str(path) in message


def test_archives_that_are_none(tmp_path: Path) -> None:
    archive = pack(tmp_path / "tiny-imagenet-200.zip", tiny())
    whole = archive.read_bytes()
    for content in (whole[:1000], b"<html>", b""):
        archive.write_bytes(content)
        message = refusal(lambda: load_tiny_imagenet(tmp_path, "train"))
        assert str(archive) in message
    pack(archive, {"readme.txt": b""})
    assert "must hold wnids.txt" in refusal(lambda: load_tiny_imagenet(archive, "train"))
    # a flipped byte inside an image, which its checksum tells
    place = whole.index(b"JFIF")
    archive.write_bytes(whole[:place] + b"XXXX" + whole[place + 4 :])
    assert "Bad CRC-32" in refusal(lambda: load_tiny_imagenet(archive, "train"))


def test_nothing_there(tmp_path: Path) -> None:
    message = refusal(lambda: load_tiny_imagenet(tmp_path, "train"))
    assert "got neither. Get it from http" in message
    message = refusal(lambda: load_tiny_imagenet(tmp_path, "val"))  # type: ignore[arg-type]
    assert "split must be one of train, test; got 'val'" in message


def test_file_that_is_larger_than_any_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_imagenet, "_LARGEST", 10_000)
    files = {**tiny(), "val/val_annotations.txt": bytes(10_001)}
    for place in (
        unpack(tmp_path / "tiny-imagenet-200", files),
        pack(tmp_path / "tiny-imagenet-200.zip", files),
    ):
        assert "val/val_annotations.txt; got it has " in refusal(
            partial(load_tiny_imagenet, place, "test")
        )
