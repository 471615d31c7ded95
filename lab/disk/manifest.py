"""The manifest of a checkpoint: every field is checked by type and range before it is used."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lab.disk.plain_files import read_plain

FORMAT_VERSION = 3

#: Names of files of tensors: the number of the checkpoint, and how the checksum begins.
FILE_NAME = re.compile(r"\d{8,}-[0-9a-f]{8}\.pt")

#: Bytes that a manifest has at most, and a file of tensors.
_MOST, _MOST_TENSORS = 2**24, 2**40

_CHECKSUM = re.compile(r"[0-9a-f]{64}")


class NotAManifest(Exception):
    """Not as it was written, or sealed by something that does not write checkpoints; says why."""


class Manifest(NamedTuple):
    """The content of a manifest."""

    number: int  # updates or steps made
    file: str  # name of the tensors, beside it
    bytes: int  # of them
    sha256: str  # of them
    score: float | None
    versions: dict[str, str]
    about: dict[str, Any]
    seal: str  # checksum of all other fields


#: The rule of each field, in words and as a check.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bytes": ("a number of bytes", lambda v: type(v) is int and 0 <= v <= _MOST_TENSORS),
    "sha256": ("a checksum", lambda v: type(v) is str and _CHECKSUM.fullmatch(v) is not None),
    "score": ("a finite number or null", lambda v: v is None or is_finite_number(v)),
    "versions": (
        "names and versions of libraries",
        lambda v: type(v) is dict and all(type(name) is str for name in v.values()),
    ),
    "about": ("fields with names", lambda v: type(v) is dict),
}


def is_finite_number(value: object) -> bool:
    """Whether a value of JSON is a number that a float can hold; ``True`` is none.

    Example:
        >>> [is_finite_number(value) for value in (1, 0.5, True, "1", float("nan"), 10**400)]
        [True, True, False, False, False, False]
    """
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and abs(value) < 2**1023


def read_manifest(path: Path, kind: str, number: int) -> Manifest:
    """Read a manifest.

    Args:
        path: the file.
        kind: the kind its checkpoint must have.
        number: the number its checkpoint must have.

    Raises:
        NotAManifest: if a byte has changed since it was written, or a value cannot be.
        ValueError: in one line, if it is of another kind or format.
        OSError: if it cannot be read.
    """
    content = read_plain(path, _MOST)
    try:
        fields = _unsealed(content)
    except (ValueError, RecursionError):
        raise NotAManifest("not as it was written") from None
    if fields["format"] != FORMAT_VERSION:
        raise ValueError(
            f"{path}: checkpoint format {fields['format']}; this version reads {FORMAT_VERSION}."
        )
    if fields["kind"] != kind:
        raise ValueError(f"{path}: a checkpoint of kind {fields['kind']!r}, not {kind!r}.")
    for name, (rule, holds) in _RULES.items():
        if not holds(fields[name]):
            raise NotAManifest(f"{name!r} is not {rule}")
    if type(fields["number"]) is not int or fields["number"] != number:
        raise NotAManifest(f"'number' is not {number}, as its name says")
    file, begins = fields["file"], f"{number:08d}-"
    if type(file) is not str or not FILE_NAME.fullmatch(file) or not file.startswith(begins):
        raise NotAManifest(f"'file' is not a name such as '{begins}1a2b3c4d.pt'")
    return Manifest(**{name: fields[name] for name in Manifest._fields})


def sealed(fields: Mapping[str, Any]) -> str:
    """The fields as JSON, with a checksum over all of them."""
    return json.dumps({**fields, "seal": _seal(fields)}, indent=2, allow_nan=False) + "\n"


def _seal(fields: Mapping[str, Any]) -> str:
    plain = json.dumps(fields, sort_keys=True, allow_nan=False)
    return hashlib.sha256(plain.encode()).hexdigest()


def _unsealed(content: bytes) -> dict[str, Any]:
    """The fields that :func:`sealed` was given, and the seal.

    Raises:
        ValueError: if a byte has changed since.
    """
    fields = json.loads(content)
    if not isinstance(fields, dict) or not fields.keys() >= {"format", "kind", *Manifest._fields}:
        raise ValueError
    seal = fields.pop("seal")
    if sealed(fields).encode() != content:
        raise ValueError
    return {**fields, "seal": seal}
