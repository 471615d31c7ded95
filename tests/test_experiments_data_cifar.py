"""CIFAR in its published forms, written here byte by byte; pickles that would run code do not."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.data.published import cifar
from experiments.data.published.cifar import load_cifar
from experiments.data.published.safe_pickle import read_plain_pickle

BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


def pixels(seed: int, total: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (total, 3072), dtype=np.uint8)


# --- writers of the true formats


def _text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2_pickle(key: str, values: np.ndarray, labels: list[int], *, order: str = "C") -> bytes:
    """As Python 2 wrote a batch: protocol 2, text as byte strings, an array of numpy 1."""
    content = values.tobytes(order)  # type: ignore[arg-type]
    rows, columns = values.shape
    dtype = b"cnumpy\ndtype\n" + _text("u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + _text("|") + b"NNN" + _int(-1) + _int(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _text("b")
    array += b"\x87R(K\x01" + _int(rows) + _int(columns) + b"\x86" + dtype
    array += (b"\x88" if order == "F" else b"\x89") + b"T" + struct.pack("<i", len(content))
    array += content + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    pairs = _text("batch_label") + _text("training batch 1 of 5")
    pairs += _text(key) + listed + _text("data") + array
    return b"\x80\x02}(" + pairs + b"u."


def binary(values: np.ndarray, labels: list[int], *, coarse: bool = False) -> bytes:
    rows = zip(values, labels, strict=True)
    return b"".join((b"\x13" if coarse else b"") + bytes([n]) + v.tobytes() for v, n in rows)


def cifar10(form: str) -> dict[str, bytes]:
    """Files of a small CIFAR-10: three images in each of the six files."""
    files = {}
    for seed, name in enumerate([*BATCHES, "test_batch"]):
        values, labels = pixels(seed, 3), [seed, 9, 0]
        if form == "py":
            files[name] = python2_pickle("labels", values, labels)
        else:
            files[f"{name}.bin"] = binary(values, labels)
    return files


def cifar100(form: str) -> dict[str, bytes]:
    train, test = (pixels(0, 4), [99, 0, 1, 50]), (pixels(1, 2), [7, 8])
    if form == "py":
        return {
            "train": python2_pickle("fine_labels", *train),
            "test": python2_pickle("fine_labels", *test),
        }
    return {"train.bin": binary(*train, coarse=True), "test.bin": binary(*test, coarse=True)}


def unpack(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(archive: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in {"readme.html": b"<html>", **files}.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match="load_cifar: ") as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading

CIFAR10 = {"py": ("cifar-10-batches-py", "cifar-10-python.tar.gz")}
CIFAR10["bin"] = ("cifar-10-batches-bin", "cifar-10-binary.tar.gz")
CIFAR100 = {"py": ("cifar-100-python",) * 2, "bin": ("cifar-100-binary",) * 2}


def check_cifar10(path: Path) -> None:
    images, labels = load_cifar(path, "cifar10", "train")
    assert images.shape == (15, 32, 32, 3)
    assert images.flags.c_contiguous
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.tolist() == [n for seed in range(5) for n in (seed, 9, 0)]
    whole = np.concatenate([pixels(seed, 3) for seed in range(5)])
    for index, channel, y, x in [(0, 0, 0, 1), (4, 2, 31, 30), (14, 1, 7, 20), (14, 2, 31, 31)]:
        assert images[index, y, x, channel] == whole[index, 1024 * channel + 32 * y + x]
    images, labels = load_cifar(path, "cifar10", "test")
    assert labels.tolist() == [5, 9, 0]
    assert (images[:, 3, 4, 0] == pixels(5, 3)[:, 100]).all()


@pytest.mark.parametrize("form", ["py", "bin"])
def test_cifar10_in_all_places(tmp_path: Path, form: str) -> None:
    folder, archive = CIFAR10[form]
    files = cifar10(form)
    check_cifar10(unpack(tmp_path / "a" / folder, files))
    check_cifar10(tmp_path / "a")
    check_cifar10(unpack(tmp_path / "under another name", files))
    (tmp_path / "b").mkdir()
    check_cifar10(pack(tmp_path / "b" / archive, folder, files))
    check_cifar10(tmp_path / "b")


@pytest.mark.parametrize("form", ["py", "bin"])
def test_cifar100_in_all_places(tmp_path: Path, form: str) -> None:
    name = CIFAR100[form][0]
    files = cifar100(form)
    (tmp_path / "b").mkdir()
    for path in (
        unpack(tmp_path / name, files),
        tmp_path,
        pack(tmp_path / "b" / f"{name}.tar.gz", name, files),
    ):
        images, labels = load_cifar(path, "cifar100", "train")
        assert labels.tolist() == [99, 0, 1, 50]
        assert (images[:, 0, 0] == pixels(0, 4)[:, ::1024]).all()
        assert load_cifar(path, "cifar100", "test").labels.tolist() == [7, 8]


def test_arrays_in_fortran_order(tmp_path: Path) -> None:
    """Columns one after the other, as numpy may have stored them."""
    plain = read_plain_pickle(python2_pickle("labels", pixels(0, 5), [1] * 5, order="F"))
    assert isinstance(plain["data"], np.ndarray)
    assert (plain["data"] == pixels(0, 5)).all()
    assert plain["batch_label"] == b"training batch 1 of 5"


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_written_by_python_3(protocol: int) -> None:
    batch = {b"data": pixels(0, 3), b"labels": [1, 2, 3]}
    plain = read_plain_pickle(pickle.dumps(batch, protocol=protocol))
    assert isinstance(plain["data"], np.ndarray)
    assert (plain["data"] == pixels(0, 3)).all()


# --- pickles that would run code


class Runs:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_does_not(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    calls: list[Any] = [
        Runs(os.system, f"touch {marker}"),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
        Runs(open, str(marker), "w"),
        Runs(np.save, str(marker), 1),
        Runs(getattr, "text", "join"),
    ]
    for call in calls:
        files = cifar10("py")
        content = {"data": pixels(0, 3), "labels": [1, 2, 3], "extra": call}
        files["data_batch_3"] = pickle.dumps(content, protocol=protocol)
        folder = unpack(tmp_path / f"{calls.index(call)}" / "cifar-10-batches-py", files)
        message = refusal(lambda at=folder: load_cifar(at, "cifar10", "train"))  # type: ignore[misc]
        assert f"{folder}/data_batch_3 is not a pickle of plain data: it names" in message
        assert not marker.exists()
    # and they would have:
    pickle.loads(pickle.dumps(calls[0], protocol=protocol))
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}.garbage"[:-10],
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((2, 3072))}),  # not of bytes
        pickle.dumps({"data": np.zeros((2, 3072), np.int8)}, protocol=2),  # nor these
        pickle.dumps({"data": np.array([None])}, protocol=2),
        b"cos.path\nsystem\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bload.system\x93.",
        b"cnumpy\nndarray\n}b.",  # state for the class itself
        b"c_codecs\nencode\n}(U\x01xU\x01yub.",
        b"\x82\x01.",  # extension registry
        b"U\x01xQ.",  # persistent id
        b"cnumpy\nndarray\nK\x01K\xff\x86R.",
    ],
)
def test_other_pickles_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a pickle of plain data") as caught:
        read_plain_pickle(content)
    assert "\n" not in str(caught.value)


# --- mistakes


def test_missing_files_are_named(tmp_path: Path) -> None:
    files = cifar10("py")
    del files["data_batch_2"], files["data_batch_5"]
    folder = unpack(tmp_path / "cifar-10-batches-py", files)
    message = refusal(lambda: load_cifar(tmp_path, "cifar10", "train"))
    assert f"{folder} must hold data_batch_1" in message
    assert "missing: data_batch_2, data_batch_5." in message
    archive = pack(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", {"test": b""})
    message = refusal(lambda: load_cifar(archive, "cifar100", "train"))
    assert "missing: train" in message


def test_nothing_there(tmp_path: Path) -> None:
    unpack(tmp_path / "cifar-100-python", cifar100("py"))
    assert "got none" in refusal(lambda: load_cifar(tmp_path, "cifar10", "test"))
    for name, split in (("cifar", "test"), ("cifar10", "val")):
        message = refusal(lambda n=name, s=split: load_cifar(tmp_path, n, s))  # type: ignore[misc]
        assert "must be one of" in message


@pytest.mark.parametrize(
    ("values", "labels", "told"),
    [
        (pixels(0, 3)[:, :-1], [0, 1, 2], r"values \(3, 3071\)"),
        (pixels(0, 3), [0, 1], "and 2 labels"),
        (pixels(0, 3), [0, 1, 10], "labels from 0 to 9"),
    ],
)
def test_batches_of_other_content(
    tmp_path: Path, values: np.ndarray, labels: list[int], told: str
) -> None:
    files = {"test_batch": python2_pickle("labels", values, labels)}
    unpack(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(ValueError, match=told):
        load_cifar(tmp_path, "cifar10", "test")


@pytest.mark.parametrize("labels", [None, "abc", [1.5], [1 << 70], [None]])
def test_labels_of_another_type(tmp_path: Path, labels: object) -> None:
    content = pickle.dumps({"data": pixels(0, 1), "labels": labels}, protocol=2)
    unpack(tmp_path / "cifar-10-batches-py", {"test_batch": content})
    message = refusal(lambda: load_cifar(tmp_path, "cifar10", "test"))
    assert "a list 'labels' of whole numbers; got data, labels" in message


def test_binary_files_cut_short(tmp_path: Path) -> None:
    files = cifar10("bin")
    files["test_batch.bin"] = files["test_batch.bin"][:-1]
    unpack(tmp_path / "cifar-10-batches-bin", files)
    message = refusal(lambda: load_cifar(tmp_path, "cifar10", "test"))
    assert "test_batch.bin must hold records of 3073 bytes; got 9218" in message


def test_damaged_archives(tmp_path: Path) -> None:
    archive = pack(tmp_path / CIFAR10["bin"][1], CIFAR10["bin"][0], cifar10("bin"))
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"<html>", b"", gzip.compress(b"no tar inside")):
        archive.write_bytes(content)
        message = refusal(lambda: load_cifar(archive, "cifar10", "train"))
        assert str(archive) in message


# --- more than there can be


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("name", ["data_batch_1", "other"])
def test_archive_that_unpacks_to_more_than_any_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes, name: str
) -> None:
    most = 1 << 23
    monkeypatch.setattr(cifar, "_LARGEST", most)
    entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
    entry.type, entry.size = kind, 1 << 40  # tarfile itself would read what is no file whole
    zeros = gzip.compress(bytes(1 << 20), 9)
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT)) + zeros * 64)
    tracemalloc.start()
    try:
        message = refusal(lambda: load_cifar(archive, "cifar10", "train"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "it has more than 8,388,608 bytes" in message
    assert peak < 4 * most


def test_file_of_a_folder_that_is_larger_than_any_is_refused(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "cifar-10-batches-py", cifar10("py"))
    with (folder / "test_batch").open("wb") as file:
        file.truncate(2**40)
    message = refusal(lambda: load_cifar(folder, "cifar10", "test"))
    assert "it has 1,099,511,627,776 bytes, more than" in message
