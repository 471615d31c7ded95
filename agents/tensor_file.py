"""Files of tensors and plain values: written whole or not at all, free of pickled code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from agents.output import whole_file

_VERSION = "format_version"


def save_tensors(path: Path, content: dict[str, Any], version: int) -> None:
    """Write ``content`` to ``path``. A crash at any moment leaves the previous file intact.

    Args:
        path: the file.
        content: tensors and plain values, in dicts and lists.
        version: of the format, by which a reader knows its files.
    """
    with whole_file(path) as temporary, temporary.open("wb") as file:
        torch.save({**content, _VERSION: version}, file)
        file.flush()
        os.fsync(file.fileno())


def load_tensors(path: Path, version: int) -> dict[str, Any]:
    """Read what :func:`save_tensors` wrote, onto the CPU. Nothing in the file is executed.

    Raises:
        ValueError: in one line, if the file is damaged or of another format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises a different type for each way a file can be damaged
        content = None
    if not isinstance(content, dict) or _VERSION not in content:
        raise ValueError(f"{path}: damaged or not a checkpoint of this program.")
    found = content.pop(_VERSION)
    if found != version:
        raise ValueError(f"{path}: checkpoint format {found}; this version reads {version}.")
    return content
