"""Tiny ImageNet (200 classes, 64 x 64) from its published folder or zip file."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.data.common import LabelledImages, check_choice
from lab.disk.named_files import Bounded, read_file
from lab.words import message_of

SIDE = 64
_LARGEST = 1 << 24  # bytes of a file; an image has some thousand, a list 600 000
FOLDER = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{FOLDER}.zip"

Split = Literal["train", "test"]


class _Files(NamedTuple):
    """The files below the folder that has wnids.txt, on disk or in a zip file."""

    where: str
    names: list[str]  # with forward slashes, sorted, relative to that folder
    read: Callable[[str], bytes]


def load_tiny_imagenet(path: str | Path, split: Split) -> LabelledImages:
    """Read a split of Tiny ImageNet. Grey files become RGB.

    The labels of the published test images are not public: as everywhere, the validation images
    are the test split.

    Args:
        path: the unpacked folder or the zip file, or a folder that holds ``tiny-imagenet-200`` or
            ``tiny-imagenet-200.zip``.
        split: ``"train"`` (100 000 images, 1.2 GB in memory) or ``"test"`` (10 000).

    Returns:
        Images ``(M, 64, 64, 3)``, sorted by file name; labels are lines of wnids.txt, from 0.

    Raises:
        ValueError: in one line, if nothing is found, or a file is missing or damaged.

    Example:
        >>> load_tiny_imagenet("no-such-folder", "train")
        Traceback (most recent call last):
        ...
        ValueError: load_tiny_imagenet: no-such-folder must be or hold tiny-imagenet-200 (with \
wnids.txt) or its zip file; got neither. Get it from http://cs231n.stanford.edu/tiny-imagenet-200.zip
    """
    check_choice("load_tiny_imagenet", "split", split, ("train", "test"))
    with _open(Path(path)) as files:
        classes = {wnid: label for label, wnid in enumerate(_text(files, "wnids.txt").split())}
        listed = _train_files(files, classes) if split == "train" else _val_files(files, classes)
        images = np.empty((len(listed), SIDE, SIDE, 3), dtype=np.uint8)
        for image, name in zip(images, listed, strict=True):
            image[:] = _decode(_read(files, name), f"{files.where}/{name}")
    return LabelledImages(images, np.array(list(listed.values()), dtype=np.int64))


def _train_files(files: _Files, classes: dict[str, int]) -> dict[str, int]:
    """Name and label of each image in ``train/<wnid>/images``."""
    listed = {}
    for name in files.names:
        parts = name.split("/")
        in_place = len(parts) == 4 and parts[0] == "train" and parts[2] == "images"
        if in_place and parts[1] in classes and parts[3].lower().endswith(".jpeg"):
            listed[name] = classes[parts[1]]
    empty = classes.keys() - {name.split("/")[1] for name in listed}
    if empty or not classes:
        raise _incomplete(
            files,
            "train/<wnid>/images/*.JPEG for every wnid of wnids.txt",
            f"{len(empty)} of {len(classes)} are without, {min(empty, default='none listed')}",
        )
    return listed


def _val_files(files: _Files, classes: dict[str, int]) -> dict[str, int]:
    """Name and label of each image listed in ``val/val_annotations.txt``."""
    listed = {}
    for line in _text(files, "val/val_annotations.txt").splitlines():
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in classes or "/" in file:
            raise _incomplete(
                files, "lines 'file, wnid, box' in val/val_annotations.txt", f"{line!r}"
            )
        listed[f"val/images/{file}"] = classes[wnid]
    absent = listed.keys() - set(files.names)
    if absent or not listed:
        raise _incomplete(
            files,
            "val/images with all files of val/val_annotations.txt",
            f"{len(absent)} of {len(listed)} are missing, {min(absent, default='none listed')}",
        )
    return dict(sorted(listed.items()))


@contextmanager
def _open(path: Path) -> Iterator[_Files]:
    for folder in (path, path / FOLDER):
        if (folder / "wnids.txt").is_file():
            names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))
            yield _Files(str(folder), names, partial(_read_below, folder))
            return
    archive = path if path.is_file() else path / f"{FOLDER}.zip"
    if not archive.is_file():
        raise ValueError(
            f"load_tiny_imagenet: {path} must be or hold {FOLDER} (with wnids.txt) or its zip "
            f"file; got neither. Get it from {URL}"
        )
    try:
        opened = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"load_tiny_imagenet: {archive} cannot be read: {message_of(error)}. "
            f"Get it again from {URL}"
        ) from error
    with opened:
        yield _zipped(opened, archive)


def _zipped(opened: zipfile.ZipFile, archive: Path) -> _Files:
    names = opened.namelist()
    prefix = next((n.removesuffix("wnids.txt") for n in names if n.endswith("wnids.txt")), "")
    inside = sorted(n.removeprefix(prefix) for n in names if n.startswith(prefix))
    return _Files(str(archive), inside, lambda name: _read_zipped(opened, prefix + name))


def _read_zipped(opened: zipfile.ZipFile, name: str) -> bytes:
    with opened.open(name) as file:
        return Bounded(file, _LARGEST).read()


def _read_below(folder: Path, name: str) -> bytes:
    return read_file(folder / name, _LARGEST)


def _read(files: _Files, name: str) -> bytes:
    try:
        return files.read(name)
    except (OSError, KeyError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        # RuntimeError: a file of the archive that needs a password
        raise _incomplete(files, name, message_of(error)) from error


def _text(files: _Files, name: str) -> str:
    return _read(files, name).decode("utf-8", errors="replace")


def _decode(content: bytes, where: str) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.size == (SIDE, SIDE):
                return np.asarray(image.convert("RGB"))
            problem = f"{image.size[0]} x {image.size[1]} pixels"
    except UnidentifiedImageError:  # whose own message tells an address in memory
        problem = "another format"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = message_of(error)
    raise ValueError(
        f"load_tiny_imagenet: {where} must be a JPEG image of {SIDE} x {SIDE}; got {problem}. "
        f"Get it again from {URL}"
    )


def _incomplete(files: _Files, expected: str, got: str) -> ValueError:
    return ValueError(
        f"load_tiny_imagenet: {files.where} must hold {expected}; got {got}. "
        f"Get it again from {URL}"
    )
