"""The checkpoints of a run: written whole or not at all, checked byte by byte, free of code.

A checkpoint is two files in the run's folder ``checkpoints``: tensors, ``00000040-1a2b3c4d.pt``,
which torch reads with ``weights_only=True``, and a manifest, ``00000040.json``, which says what
they are and holds their checksum. The manifest is written last: with it, the checkpoint is there.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from agents.config import Damaged
from agents.run_folder import require_space, sweep_unfinished, sync_folder, write_bytes
from agents.versions import versions

FOLDER_NAME = "checkpoints"
FORMAT_VERSION = 3

#: The one file of versions before format 3.
FORMER_NAME = "checkpoint.pt"

_FIELDS = {"format", "kind", "file", "sha256", "score", "versions", "about", "seal"}

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


class _Damaged(Exception):
    """What is wrong with a file."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(why)
        self.path = path
        self.why = why


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run: the run's folder.
        kind: what wrote them, such as ``"agent"``; others are refused.
    """

    def __init__(self, run: Path, kind: str) -> None:
        self.run = run
        self.kind = kind
        self.folder = run / FOLDER_NAME

    def numbers(self) -> list[int]:
        """Of the checkpoints there are, ascending, damaged ones among them."""
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
            about: what can be said in JSON.
            score: by which the best one is known, higher is better; ``None``: not known.

        Returns:
            The path of the tensors.

        Raises:
            OSError: if it cannot be written; such as for a full disk.
        """
        if not self.folder.is_dir():
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
        write_bytes(self.manifest(number), _sealed(fields).encode())
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

    def set_aside_damaged(self) -> list[Path]:
        """Rename the newest checkpoints until the newest is whole, or none is left.

        Returns:
            The new names of their manifests.

        Raises:
            ValueError: if the newest cannot be used for another reason than damage.
        """
        renamed = []
        for number in reversed(self.numbers()):
            try:
                self._read(number)
                break
            except _Damaged:
                for path in (*self.folder.glob(f"{number:08d}-*.pt"), self.manifest(number)):
                    aside = path.rename(path.with_name(path.name + SET_ASIDE))
                renamed.append(aside)
        return renamed

    def require_space(self, model: nn.Module) -> None:
        """See that the disk has room for all checkpoints of a run, before it begins.

        Args:
            model: is in each of them, with its optimiser.

        Raises:
            RunStopped: if it has not.
        """
        parameters = sum(p.numel() for p in model.parameters())
        require_space(self.run, (KEPT + 2) * _BYTES_PER_PARAMETER * parameters)

    def clear_remains(self) -> None:
        """Remove what a killed process left half-written; only for who writes here."""
        if self.folder.is_dir():
            sweep_unfinished(self.folder)
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
                score = self._manifest(number)["score"]
                if score is not None:
                    scores[number] = score
        return max(scores, key=lambda n: (scores[n], -n)) if scores else numbers[-1]

    def _whole(self, number: int) -> bool:
        try:
            self._read(number)
        except (_Damaged, ValueError):
            return False
        return True

    def _read(self, number: int) -> Stored:
        fields = self._manifest(number)
        path = self.folder / fields["file"]
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise _Damaged(path, "it is missing") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
        if hashlib.sha256(content).hexdigest() != fields["sha256"]:
            size = f"{len(content)} of {fields['bytes']} bytes, " * (
                len(content) != fields["bytes"]
            )
            raise _Damaged(path, f"{size}another checksum than {self.manifest(number).name} names")
        try:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # torch raises a different type for each thing that can be wrong
            tensors = None
        if not isinstance(tensors, dict):
            raise _Damaged(path, "not tensors and plain values")
        return Stored(number, tensors, fields["about"], fields["score"], fields["versions"], path)

    def _manifest(self, number: int) -> dict[str, Any]:
        path = self.manifest(number)
        try:
            fields = _unsealed(path.read_bytes())
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
        except (ValueError, RecursionError):
            raise _Damaged(path, "not as it was written") from None
        if fields["format"] != FORMAT_VERSION:
            raise ValueError(
                f"{path}: checkpoint format {fields['format']}; this version reads "
                f"{FORMAT_VERSION}."
            )
        if fields["kind"] != self.kind:
            raise ValueError(f"{path}: a checkpoint of kind {fields['kind']!r}, not {self.kind!r}.")
        return fields

    def _drop_old(self) -> None:
        numbers = self.numbers()
        for number in {*numbers} - {*numbers[-KEPT:], self._best(numbers)}:
            self.manifest(number).unlink(missing_ok=True)
        self._drop_unnamed()

    def _drop_unnamed(self) -> None:
        """Remove tensors that no manifest names: their checkpoint was dropped or never finished."""
        named = set()
        for number in self.numbers():
            try:
                named.add(self._manifest(number)["file"])
            except (_Damaged, ValueError):
                return  # it may name any of them
        for path in self.folder.glob("*.pt"):
            if path.name not in named:
                path.unlink(missing_ok=True)


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds a checkpoint, whole or not."""
    return bool(CheckpointStore(run, "").numbers()) or (run / FORMER_NAME).is_file()


def _sealed(fields: Mapping[str, Any]) -> str:
    """As JSON, with a checksum over all fields."""
    plain = json.dumps(fields, sort_keys=True, allow_nan=False)
    seal = hashlib.sha256(plain.encode()).hexdigest()
    return json.dumps({**fields, "seal": seal}, indent=2, allow_nan=False) + "\n"


def _unsealed(content: bytes) -> dict[str, Any]:
    """The fields that :func:`_sealed` was given.

    Raises:
        ValueError: if a byte has changed since.
    """
    fields = json.loads(content)
    if not isinstance(fields, dict) or not fields.keys() >= _FIELDS:
        raise ValueError
    del fields["seal"]
    if _sealed(fields).encode() != content:
        raise ValueError
    return fields
