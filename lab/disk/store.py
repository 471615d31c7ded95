"""The checkpoints of a run: written whole or not at all, checked byte by byte, free of code.

A checkpoint is two files in the run's folder ``checkpoints``: tensors, ``00000040-1a2b3c4d.pt``,
which torch reads with ``weights_only=True``, and a manifest, ``00000040.json``, which says what
they are and holds their checksum. The manifest is written last: with it, the checkpoint is there.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lab.disk.folder import CHECKPOINTS_NAME, require_space
from lab.disk.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    Manifest,
    NotAManifest,
    read_manifest,
    sealed,
)
from lab.disk.output import remove_abandoned, sync_folder, write_bytes
from lab.disk.plain_files import TooLarge, is_plain_file, kind_of, read_plain, require_plain_folder
from lab.disk.stored_values import require_plain_values
from lab.disk.versions import versions
from lab.settings import Damaged

FOLDER_NAME = CHECKPOINTS_NAME

#: The one file of versions before format 3.
FORMER_NAME = "checkpoint.pt"

#: How many are kept, besides the best one.
KEPT = 2

#: Ending of the manifest of a damaged checkpoint that a run went on without.
SET_ASIDE = ".damaged"

#: Bytes of a checkpoint per parameter: itself and two moments of its gradient. Besides those that
#: are kept there is the best one, and one that is being written.
_BYTES_PER_PARAMETER = 12

_MANIFEST = re.compile(r"(\d{8,})\.json")


class DamagedCheckpoint(Damaged):
    """A checkpoint that is not as it was written; says which other one is whole, if one is."""

    def __init__(self, path: Path, why: str, manifest: Path, whole: int | None) -> None:
        end = (
            f"No earlier one is whole: remove the folder {manifest.parent} to begin again."
            if whole is None
            else f"The one before it, {whole}, is whole: remove {manifest.name} to use that."
        )
        super().__init__(f"{path} is damaged ({why}). {end}")
        self.whole = whole


class Stored(NamedTuple):
    """A checkpoint as it was saved."""

    number: int  # updates or steps made
    tensors: dict[str, Any]  # tensors and plain values, in dicts and lists
    about: dict[str, Any]  # what can be said in JSON
    score: float | None  # by which the best one is known
    versions: dict[str, str]  # of the libraries that wrote it
    path: Path  # of the tensors
    sha256: str  # of the tensors
    seal: str  # checksum of all that the manifest says


class _Damaged(Exception):
    """A file is damaged; says which one and how."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(why)
        self.path = path
        self.why = why


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run: the run's folder.
        kind: the kind of program that wrote them, such as ``"agent"``; others are refused.
    """

    def __init__(self, run: Path, kind: str) -> None:
        self.run = run
        self.kind = kind
        self.folder = run / FOLDER_NAME

    def numbers(self) -> list[int]:
        """Numbers of all checkpoints, ascending, including damaged ones.

        Raises:
            ValueError: in one line, if their folder is a link, or none.
        """
        require_plain_folder(self.folder)
        if not self.folder.is_dir():
            return []
        found = (_MANIFEST.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def manifest(self, number: int) -> Path:
        """The manifest of a checkpoint."""
        return self.folder / f"{number:08d}.json"

    def save(
        self,
        number: int,
        tensors: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        score: float | None = None,
    ) -> Path:
        """Write a checkpoint and drop those that are no longer needed.

        Kept are the last two and the best one. A crash at any moment leaves those there were.

        Args:
            number: updates or steps made.
            tensors: tensors and plain values, in dicts and lists.
            about: further data, as JSON can hold it.
            score: decides which checkpoint is the best, higher is better; ``None`` if unknown.

        Returns:
            The path of the tensors.

        Raises:
            OSError: if it cannot be written; such as for a full disk.
        """
        if not kind_of(self.folder):
            self.folder.mkdir()
            sync_folder(self.run)
        buffer = io.BytesIO()
        torch.save(dict(tensors), buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        # Part of the name: a number that is written again never touches the file it had before.
        path = self.folder / f"{number:08d}-{digest[:8]}.pt"
        write_bytes(path, content)
        fields = {
            "format": FORMAT_VERSION,
            "kind": self.kind,
            "number": number,
            "file": path.name,
            "bytes": len(content),
            "sha256": digest,
            "score": score,
            "versions": versions(),
            "about": dict(about),
        }
        write_bytes(self.manifest(number), sealed(fields).encode())
        with suppress(OSError):  # the next one tries again
            self._drop_old()
        return path

    def load(self, which: str | int = "last") -> Stored:
        """Read a checkpoint onto the CPU. Nothing in it is executed.

        Args:
            which: ``"last"``, ``"best"`` or a number.

        Raises:
            DamagedCheckpoint: if a byte of it is not as it was written, or a file is missing.
            ValueError: in one line, if there is none, or it is of another kind or format.
        """
        number = self._number(which)
        try:
            return self._read(number)
        except _Damaged as error:
            whole = next(
                (n for n in reversed(self.numbers()) if n < number and self._whole(n)), None
            )
            raise DamagedCheckpoint(error.path, error.why, self.manifest(number), whole) from None

    def damaged(self) -> list[int]:
        """The newest checkpoints, newest first, until one is whole.

        Raises:
            ValueError: if one cannot be used for another reason than damage.
        """
        found = []
        for number in reversed(self.numbers()):
            try:
                self._read(number)
                break
            except _Damaged:
                found.append(number)
        return found

    def set_aside_damaged(self) -> list[Path]:
        """Rename what :meth:`damaged` tells; return the new names of the manifests."""
        renamed = []
        for number in self.damaged():
            for path in (*self.folder.glob(f"{number:08d}-*.pt"), self.manifest(number)):
                aside = path.rename(path.with_name(path.name + SET_ASIDE))
            renamed.append(aside)
        return renamed

    def require_space(self, model: nn.Module) -> None:
        """Refuse a run for whose checkpoints the disk has no room, before it begins.

        Args:
            model: is in each of them, with its optimiser.

        Raises:
            RunStopped: in one line.
        """
        parameters = sum(p.numel() for p in model.parameters())
        require_space(self.run, (KEPT + 2) * _BYTES_PER_PARAMETER * parameters)

    def clear_remains(self) -> None:
        """Remove what a killed process left half-written; only for who writes here.

        Raises:
            ValueError: in one line, if the folder is a link.
        """
        require_plain_folder(self.folder)
        if self.folder.is_dir():
            remove_abandoned(self.folder)
            self._drop_unnamed()

    def _number(self, which: str | int) -> int:
        numbers = self.numbers()
        if not numbers:
            if (self.run / FORMER_NAME).is_file():
                raise ValueError(
                    f"{self.run / FORMER_NAME}: checkpoint of a format before {FORMAT_VERSION}, "
                    f"which this version reads; train again in another folder."
                )
            raise ValueError(
                f"{str(self.run)!r} holds no {FOLDER_NAME}: not a run folder, or its training "
                "stopped before the first checkpoint."
            )
        if which == "last":
            return numbers[-1]
        if which == "best":
            return self._best(numbers)
        if which not in numbers:
            there = ", ".join(map(str, numbers))
            raise ValueError(f"{str(self.run)!r} has no checkpoint {which}; it has {there}.")
        return int(which)

    def _best(self, numbers: list[int]) -> int:
        """The earliest of the highest score; the last one where no score is known."""
        scores: dict[int, float] = {}
        for number in numbers:
            with suppress(_Damaged, ValueError):
                score = self._manifest(number).score
                if score is not None:
                    scores[number] = score
        return max(scores, key=lambda n: (scores[n], -n)) if scores else numbers[-1]

    def _whole(self, number: int) -> bool:
        try:
            self._read(number)
        except (_Damaged, ValueError):
            return False
        return True

    def about(self, number: int) -> Manifest | None:
        """The manifest of a checkpoint, without reading its tensors; ``None`` if it is damaged.

        Raises:
            ValueError: if it is of another kind or format.
        """
        try:
            return self._manifest(number)
        except _Damaged:
            return None

    def _read(self, number: int) -> Stored:
        manifest = self._manifest(number)
        path = self.folder / manifest.file
        try:
            content = read_plain(path, manifest.bytes)
        except FileNotFoundError:
            raise _Damaged(path, "it is missing") from None
        except TooLarge as error:
            raise _Damaged(path, str(error.strerror)) from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
        if hashlib.sha256(content).hexdigest() != manifest.sha256:
            why = f"another checksum than {self.manifest(number).name} names"
            if len(content) < manifest.bytes:
                why = f"{len(content)} of {manifest.bytes} bytes, {why}"
            raise _Damaged(path, why)
        try:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            require_plain_values(tensors)
        except Exception:  # torch raises a different type for each thing that can be wrong
            raise _Damaged(path, "not tensors and plain values") from None
        _, _, _, sha256, score, made_by, about, seal = manifest
        return Stored(number, tensors, about, score, made_by, path, sha256, seal)

    def _manifest(self, number: int) -> Manifest:
        path = self.manifest(number)
        try:
            return read_manifest(path, self.kind, number)
        except NotAManifest as error:
            raise _Damaged(path, str(error)) from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}).") from None

    def _drop_old(self) -> None:
        numbers = self.numbers()
        for number in {*numbers} - {*numbers[-KEPT:], self._best(numbers)}:
            if is_plain_file(self.manifest(number)):
                self.manifest(number).unlink(missing_ok=True)
        self._drop_unnamed()

    def _drop_unnamed(self) -> None:
        """Remove tensors that no manifest names: their checkpoint was dropped or never finished.

        Where a manifest is damaged, or names what is not there, any of them may be meant by it.
        """
        named = set()
        for number in self.numbers():
            try:
                file = self._manifest(number).file
            except (_Damaged, ValueError):
                return
            if not is_plain_file(self.folder / file):
                return
            named.add(file)
        for path in self.folder.iterdir():
            if FILE_NAME.fullmatch(path.name) and path.name not in named and is_plain_file(path):
                path.unlink(missing_ok=True)


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds a checkpoint, whole or not.

    Raises:
        ValueError: in one line, if its checkpoints stand behind a link.
    """
    return bool(CheckpointStore(run, "").numbers()) or (run / FORMER_NAME).is_file()
