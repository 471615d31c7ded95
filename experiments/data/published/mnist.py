"""MNIST from its four idx files, and fetching those that are missing."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import math
import os
import tempfile
import urllib.request
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from experiments.data.common import LabelledImages, check_choice, hold_out
from lab.disk.named_files import read_file
from lab.words import message_of

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"

#: The files as published (LeCun, Cortes and Burges), compressed, with their SHA-256.
FILES = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

Split = Literal["train", "test"]
_PREFIX = {"train": "train", "test": "t10k"}
_TEST_SHARE = 0.2  # of the t10k files where there are no others
_LARGEST = 1 << 30  # bytes of a file, packed or not; MNIST's has 47 million, EMNIST's 547
_LARGEST_DOWNLOAD = 1 << 24  # bytes; the largest file has 9 912 422
_TIMEOUT_S = 30.0


def load_mnist(folder: str | Path, split: Split, *, download: bool = False) -> LabelledImages:
    """Read the digits of a split from a folder with the idx files, gzip-compressed or not.

    With all four files, the splits are the published 60 000 and 10 000 digits. A folder that has
    the two ``t10k`` files and neither ``train`` file is a small MNIST: 80 % of its digits (8000)
    are the training split and the others (2000) the test split, always the same ones, drawn by
    :func:`~experiments.data.common.hold_out` with seed 0.

    Args:
        folder: folder of the files, named as published, with or without ``.gz``.
        split: ``"train"`` or ``"test"``.
        download: fetch what is missing from :data:`URL` into the folder first, 11 MB in all.

    Returns:
        Images ``(M, 28, 28)``, bright digits on 0, with their digits as labels.

    Raises:
        ValueError: in one line, if a file is missing, damaged or of another format, or cannot be
            fetched.

    Example:
        >>> load_mnist("no-such-folder", "test")
        Traceback (most recent call last):
        ...
        ValueError: load_mnist: no-such-folder must hold t10k-images-idx3-ubyte and \
t10k-labels-idx1-ubyte (or both with .gz); missing: both. Fetch them with \
download=True (--download), or copy them there.
    """
    check_choice("load_mnist", "split", split, tuple(_PREFIX))
    root = Path(folder)
    if download:
        download_mnist(root)
    if any(_find(root, name) for name in FILES if name.startswith("train")):
        return _read_pair(root, _PREFIX[split])
    whole = _read_pair(root, "t10k")
    train, test = hold_out(whole, _TEST_SHARE)
    return train if split == "train" else test


def download_mnist(folder: str | Path) -> None:
    """Fetch the files that a folder lacks; each appears there whole and checked, or not at all.

    Args:
        folder: made if it is not there.

    Raises:
        ValueError: in one line, if a file cannot be fetched or written or is not the published one.
    """
    root = Path(folder)
    for name, sha256 in FILES.items():
        if _find(root, name):
            continue
        content = _fetch(f"{URL}{name}.gz")
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(
                f"download_mnist: {URL}{name}.gz must have the published SHA-256 {sha256[:12]}...; "
                "got other content. Try again, or copy the file from elsewhere."
            )
        try:
            _write_whole(root / f"{name}.gz", content)
        except OSError as error:
            raise ValueError(
                f"download_mnist: cannot write {name}.gz into {root} ({error.strerror}). "
                "Name a folder that can be written."
            ) from error


def read_idx(path: str | Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an array of bytes from an idx file, compressed by gzip or not (its content decides).

    The format: two zero bytes, 8 for bytes, the number of dimensions, each size as four bytes with
    the highest first, then the values.

    Args:
        path: the file.
        dimensions: how many the array must have, 1 for labels and 3 for images.

    Returns:
        The array, of its own memory.

    Raises:
        ValueError: in one line naming the file, if it is unreadable, cut short, longer than its
            header says, or no such array.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "three-labels"
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        >>> read_idx(path, 1)
        array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    cure = "Delete the file and fetch it again."
    start = 4 + 4 * dimensions
    try:
        content = _content(path, start)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"read_idx: {path} cannot be read: {message_of(error)}. {cure}") from error
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise ValueError(
            f"read_idx: {path} must begin with {magic.hex()}, the mark of {dimensions}-dimensional "
            f"bytes; got {content[:4].hex() or 'nothing'}. {cure}"
        )
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist()) if len(content) >= start else ()
    if len(shape) != dimensions or len(content) - start != math.prod(shape):
        raise ValueError(
            f"read_idx: {path} must hold as many values as its header says, {shape}; "
            f"got {max(0, len(content) - start)} bytes. {cure}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _content(path: Path, start: int) -> bytes:
    """The unpacked content of a file; at most one byte more than its header says."""
    content = read_file(path, _LARGEST)
    if not content.startswith(b"\x1f\x8b"):
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        header = file.read(start)
        values = math.prod(np.frombuffer(header[4:].ljust(start - 4, b"\0"), ">u4").tolist())
        if values > _LARGEST:
            raise OSError(f"its header tells of {values:,} values, more than {_LARGEST:,}")
        return header + file.read(values + 1)


def _find(root: Path, name: str) -> Path | None:
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _read_pair(root: Path, prefix: str) -> LabelledImages:
    names = [name for name in FILES if name.startswith(prefix)]
    found = {name: path for name in names if (path := _find(root, name))}
    missing = [name for name in names if name not in found]
    if missing:
        told = "both" if len(missing) == len(names) else missing[0]
        raise ValueError(
            f"load_mnist: {root} must hold {' and '.join(names)} (or both with .gz); "
            f"missing: {told}. Fetch them with download=True (--download), or copy them there."
        )
    images, labels = read_idx(found[names[0]], 3), read_idx(found[names[1]], 1)
    if images.shape != (len(labels), 28, 28) or (labels > 9).any():
        raise ValueError(
            f"load_mnist: the {prefix} files in {root} must hold M images of 28 x 28 and M labels "
            f"from 0 to 9; got images {images.shape}, {len(labels)} labels up to "
            f"{labels.max(initial=0)}. Delete them and fetch them again."
        )
    return LabelledImages(images, labels.astype(np.int64))


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            content: bytes = response.read(_LARGEST_DOWNLOAD)
            return content
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"download_mnist: cannot fetch {url}: {message_of(error)}. "
            "Check the connection, or copy the files into the folder."
        ) from error


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside the file and rename, so that a broken run leaves no half file behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)  # mkstemp gives a file that only its owner may read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
