"""CIFAR-10 and CIFAR-100 in the forms they are published in (Krizhevsky, 2009).

Both the "python" form (pickles, read without running anything they name) and the "binary" form,
unpacked or as the ``.tar.gz`` archive, which is read without unpacking it.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.data.common import LabelledImages, check_choice
from experiments.data.published.safe_pickle import read_plain_pickle
from lab.disk.named_files import Bounded, read_file
from lab.words import message_of

Name = Literal["cifar10", "cifar100"]
Split = Literal["train", "test"]

_LARGEST = 1 << 30  # bytes of a file, or of an archive unpacked; the published have 190 million
_SIDE = 32
_VALUES = 3 * _SIDE * _SIDE


class _Form(NamedTuple):
    """One of the published forms of a data set."""

    folder: str  # also the folder inside the archive
    archive: str
    members: dict[str, tuple[str, ...]]  # split -> file names
    label_key: str = ""  # of a pickle; empty for the binary form
    label_bytes: int = 1  # before each image of the binary form; the last one is the label


_BATCHES = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
_WHOLE: dict[str, tuple[str, ...]] = {"train": ("train",), "test": ("test",)}


def _binary(members: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {split: tuple(f"{name}.bin" for name in names) for split, names in members.items()}


_FORMS = {
    "cifar10": (
        _Form("cifar-10-batches-py", "cifar-10-python.tar.gz", _BATCHES, "labels"),
        _Form("cifar-10-batches-bin", "cifar-10-binary.tar.gz", _binary(_BATCHES)),
    ),
    "cifar100": (
        _Form("cifar-100-python", "cifar-100-python.tar.gz", _WHOLE, "fine_labels"),
        _Form("cifar-100-binary", "cifar-100-binary.tar.gz", _binary(_WHOLE), label_bytes=2),
    ),
}
_CLASSES = {"cifar10": 10, "cifar100": 100}


def load_cifar(path: str | Path, name: Name, split: Split) -> LabelledImages:
    """Read a split of CIFAR-10 or CIFAR-100, in whichever published form is there.

    Args:
        path: an unpacked folder (``cifar-10-batches-py`` or ``-bin``, ``cifar-100-python`` or
            ``-binary``), an archive (``cifar-10-python.tar.gz`` and so on), or a folder that
            holds one of these under its published name. The python form comes first.
        name: ``"cifar10"`` or ``"cifar100"`` (its 100 fine classes).
        split: ``"train"`` (50 000 images) or ``"test"`` (10 000).

    Returns:
        Images ``(M, 32, 32, 3)``, in the order of the files, with their classes.

    Raises:
        ValueError: in one line, if nothing is found, a file is missing, damaged or of another
            format, or a pickle names anything but what an array needs.

    Example:
        >>> load_cifar("no-such-folder", "cifar10", "test")
        Traceback (most recent call last):
        ...
        ValueError: load_cifar: no-such-folder must be or hold one of cifar-10-batches-py, \
cifar-10-batches-bin, cifar-10-python.tar.gz, cifar-10-binary.tar.gz; got none. \
Get an archive from https://www.cs.toronto.edu/~kriz/cifar.html
    """
    check_choice("load_cifar", "name", name, tuple(_FORMS))
    check_choice("load_cifar", "split", split, tuple(_WHOLE))
    source, form = _find(Path(path), name)
    members = form.members[split]
    contents = _from_folder(source, members) if source.is_dir() else _from_archive(source, form)
    missing = [member for member in members if member not in contents]
    if missing:
        raise ValueError(
            f"load_cifar: {source} must hold {', '.join(members)}; missing: {', '.join(missing)}. "
            "Unpack the archive again."
        )
    parts = [
        _parse(contents[member], form, f"{source}/{member}", _CLASSES[name]) for member in members
    ]
    values, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    # (M, 3072) -> (M, 3, 32, 32) -> (M, 32, 32, 3)
    images = values.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return LabelledImages(np.ascontiguousarray(images), labels.astype(np.int64))


def _find(path: Path, name: str) -> tuple[Path, _Form]:
    """The unpacked folder or the archive, and the form it has."""
    forms = _FORMS[name]
    for form in forms:
        if (path / form.folder).is_dir():
            return path / form.folder, form
    for form in forms:
        if (path / form.archive).is_file():
            return path / form.archive, form
    for form in forms:
        # One file is enough to tell the form; what else is missing is then told by name.
        if any((path / member).is_file() for names in form.members.values() for member in names):
            return path, form
        if path.is_file() and path.name == form.archive:
            return path, form
    names = [form.folder for form in forms] + [form.archive for form in forms]
    raise ValueError(
        f"load_cifar: {path} must be or hold one of {', '.join(names)}; got none. "
        "Get an archive from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def _from_folder(folder: Path, members: Iterable[str]) -> dict[str, bytes]:
    try:
        return {m: read_file(folder / m, _LARGEST) for m in members if (folder / m).is_file()}
    except OSError as error:
        raise ValueError(f"load_cifar: {folder} cannot be read: {message_of(error)}.") from error


def _from_archive(archive: Path, form: _Form) -> dict[str, bytes]:
    """The data files of all splits. Nothing is written, so paths inside cannot do harm."""
    wanted = {f"{form.folder}/{m}": m for names in form.members.values() for m in names}
    contents: dict[str, bytes] = {}
    try:
        # As a stream that ends: what tarfile itself reads, such as names, is bounded too.
        with (
            gzip.open(archive) as unpacked,
            tarfile.open(fileobj=Bounded(unpacked, _LARGEST), mode="r|") as tar,
        ):
            for entry in tar:
                file = tar.extractfile(entry) if entry.isfile() else None
                if file is not None and entry.name.removeprefix("./") in wanted:
                    contents[wanted[entry.name.removeprefix("./")]] = file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(
            f"load_cifar: {archive} cannot be read: {message_of(error)}. Fetch the archive again."
        ) from error
    return contents


def _parse(
    content: bytes, form: _Form, where: str, classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels ``(M, 3072)``, all red ones first, and labels ``(M,)`` of one file."""
    read = _parse_pickle if form.label_key else _parse_binary
    values, labels = read(content, form, where)
    if values.shape != (len(labels), _VALUES) or not _all_in(labels, classes):
        raise ValueError(
            f"load_cifar: {where} must hold M rows of {_VALUES} values and M labels from 0 to "
            f"{classes - 1}; got values {values.shape} and {len(labels)} labels. "
            "Unpack the archive again."
        )
    return values, labels


def _all_in(labels: NDArray[np.int64], classes: int) -> bool:
    return bool(((labels >= 0) & (labels < classes)).all())


def _parse_pickle(
    content: bytes, form: _Form, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        found = read_plain_pickle(content)
    except ValueError as error:
        raise ValueError(
            f"load_cifar: {where} is {error}. Unpack the archive again, from its own source."
        ) from error
    values, labels = found.get("data"), found.get(form.label_key)
    if not isinstance(values, np.ndarray) or not _are_numbers(labels):
        raise ValueError(
            f"load_cifar: {where} must hold an array 'data' and a list {form.label_key!r} of whole "
            f"numbers; got {', '.join(sorted(found)) or 'nothing'}. Unpack the archive again."
        )
    return values, np.array(labels, dtype=np.int64)


def _are_numbers(labels: object) -> bool:
    # A number too large for int64 would fail later, without the name of the file.
    return isinstance(labels, list) and all(
        isinstance(label, int) and abs(label) < 1 << 31 for label in labels
    )


def _parse_binary(
    content: bytes, form: _Form, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    size = form.label_bytes + _VALUES
    if not content or len(content) % size:
        raise ValueError(
            f"load_cifar: {where} must hold records of {size} bytes; got {len(content)} bytes. "
            "Unpack the archive again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    labels = records[:, form.label_bytes - 1].astype(np.int64)
    return records[:, form.label_bytes :], labels
