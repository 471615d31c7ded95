"""Available memory, checked before it is used, and the errors that its lack causes."""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

#: Bytes that a process which trains holds at least, whatever it trains: torch and its libraries.
PROCESS = 150e6

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")

#: Files of a control group of version 2 and of version 1: its limit, and what is in use.
_GROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_NO_MEMORY = (
    *("can't allocate memory", "Cannot allocate memory"),
    *("failed to map segment", "bad_alloc"),
    *("can't start new thread", "Resource temporarily unavailable"),  # threads need some too
)

#: Memory in use by pages of files, which are dropped when memory is needed.
_RECLAIMED = ("inactive_file", "active_file")


def available_memory() -> float:
    """Bytes that this process can still fill: of the machine, its container and its limits.

    What only holds pages of files counts as free, and so does swap space: an estimate is to refuse
    what cannot be, not what may become slow. Infinity where the system does not say.
    """
    free = _meminfo()
    swap = free.get("SwapFree", 0)
    available = free["MemAvailable"] if "MemAvailable" in free else _physical_memory()
    in_groups = (left + swap for left in _left_in_groups())
    return max(0.0, min([available + swap, *in_groups, left_to_process()]))


def require_memory(needed: float, what: str, cure: str, available: float | None = None) -> None:
    """Refuse work that needs more memory than there is, before it begins.

    Args:
        needed: bytes, at least.
        what: needs them.
        cure: advice what to make smaller.
        available: bytes that there are; default: :func:`available_memory`.

    Raises:
        ValueError: in one line.

    Example:
        >>> require_memory(3e12, "the rollout", "give less of --num-envs", available=2e9)
        Traceback (most recent call last):
        ...
        ValueError: the rollout needs at least 3,000.0 GB of memory, and 2.0 GB are free; \
give less of --num-envs.
    """
    free = available_memory() if available is None else available
    if needed > free:
        size = f"{needed / 1e9:,.1f} GB" if math.isfinite(needed) else "more than any machine has"
        raise ValueError(
            f"{what} needs at least {size} of memory, and {free / 1e9:,.1f} GB are free; {cure}."
        )


def require_memory_at_once(needed: Sequence[float], jobs: int) -> None:
    """Refuse runs that need these bytes each, if any ``jobs`` of them do not fit together."""
    largest = heapq.nlargest(jobs, needed)
    total = sum(largest) + PROCESS * len(largest)
    require_memory(total, f"training {len(largest)} runs at a time", "give less --jobs")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory: Python's, torch's, the linker's, a thread's.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("no such operator"))
        (True, False)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(sign in str(error) for sign in _NO_MEMORY)


def _meminfo() -> dict[str, float]:
    """Linux's counts of bytes, by name."""
    with suppress(OSError, ValueError):
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
        fields = (line.replace(":", " ").split() for line in lines)
        return {name: 1024.0 * int(kilobytes) for name, kilobytes, *_ in fields}
    return {}


def _physical_memory() -> float:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return math.inf
    return size if size > 0 else math.inf  # it says -1 for what it does not know


def _left_in_groups() -> Iterator[float]:
    """Bytes that the control groups of this process, such as those of a container, leave to it."""
    with suppress(OSError):
        for line in (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds not in ("", "memory"):
                continue
            root = _GROUPS / kinds
            own = root / path.lstrip("/")
            # In a container its own group is the root, whatever the path says.
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    yield from _left_in_group(folder)


def _left_in_group(folder: Path) -> Iterator[float]:
    for limit, used in _GROUP_FILES:
        with suppress(OSError, ValueError):  # it is not there, or there is no limit: "max"
            most = float(int((folder / limit).read_text()))
            lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            counts = {name: int(value) for name, value in lines}
            files = sum(counts.get(f"total_{name}", counts.get(name, 0)) for name in _RECLAIMED)
            yield most - (int((folder / used).read_text()) - files)


def left_to_process() -> float:
    """Bytes that 'ulimit -v' leaves; infinity without such a limit."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            pages = int((_PROC / "self" / "statm").read_text().split()[0])
            return float(most - pages * resource.getpagesize())
    return math.inf
