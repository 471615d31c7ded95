"""On what a measurement was made, so that figures of different origin are not mixed."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rims.bench.cases import Device

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCES = {".py", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h"}

#: Rows of one table agree in these.
SAME = ("commit", "source", "torch", "threads", "device", "processor")


def describe(device: Device, threads: int, command: str) -> dict[str, Any]:
    """Processor, versions, commit, date and what was typed."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "system": platform.system(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": commit(),
        "source": source_digest(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
    }


def processor() -> str:
    """The model's name where the system tells it, else the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit(package: Path = _PACKAGE) -> str:
    """The commit of the checkout ``package`` lies in, "unknown" if it is not part of one.

    Marked as dirty where the package differs from the commit. Differences elsewhere do not count:
    the results, which may be files of the same checkout, would otherwise change it.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(package), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:  # there is no git
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside the checkout of something else.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return "unknown"
    name = git("describe", "--always", "--tags") or "unknown"
    return f"{name}-dirty" if git("status", "--porcelain", "--", ".") else name


def source_digest(package: Path = _PACKAGE) -> str:
    """A short digest of the package's source: one "dirty" or unknown commit is not another."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in _SOURCES and path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:12]
