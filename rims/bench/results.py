"""Rows of results and the file they are kept in, complete after every case."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rims.bench.cases import Case, Settings
from rims.bench.machine import SAME
from rims.bench.memory import Memory, can_measure
from rims.bench.timing import Pair, Summary, summarise

JSON_NAME = "cells.json"
MARKDOWN_NAME = "cells.md"


@dataclass(frozen=True)
class Row:
    """Measurements of one case."""

    case: Case
    pairs: tuple[Pair, ...]
    rounds_asked: int
    seconds_asked: float
    memory: Memory | None = None

    @property
    def summary(self) -> Summary:
        """Medians and quartiles of the rounds."""
        return summarise(self.pairs)

    def satisfies(self, settings: Settings) -> bool:
        """Whether measuring again with ``settings`` would bring nothing new."""
        wants_memory = settings.wants_memory(self.case) and can_measure(settings.device)
        return (
            self.rounds_asked >= settings.rounds
            and self.seconds_asked >= settings.seconds_per_case
            and (self.memory is not None or not wants_memory)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the figures, and the rounds they come from."""
        plain: dict[str, Any] = {
            **self.case.to_dict(),
            "ours": self.case.ours,
            "baseline": self.case.baseline,
            **self.summary._asdict(),
            "rounds": len(self.pairs),
            "rounds_asked": self.rounds_asked,
            "seconds_asked": self.seconds_asked,
            "rounds_ms": [list(pair) for pair in self.pairs],
            "memory": None,
        }
        if self.memory is not None:
            plain["memory"] = {**self.memory._asdict(), "ratio": self.memory.ratio}
        return plain

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> Row:
        """The row that ``to_dict`` made."""
        memory = plain["memory"]
        return Row(
            case=Case.from_dict(plain),
            pairs=tuple(Pair(*pair) for pair in plain["rounds_ms"]),
            rounds_asked=plain["rounds_asked"],
            seconds_asked=plain["seconds_asked"],
            memory=memory and Memory(memory["ours_mb"], memory["baseline_mb"]),
        )


class Earlier(NamedTuple):
    """Rows of an earlier results file that may stay, or the reason why they may not."""

    rows: list[Row]
    machine: dict[str, Any]
    obstacle: str = ""


def read_earlier(path: Path, machine: dict[str, Any]) -> Earlier:
    """Rows of ``path`` if they were made in the circumstances ``machine`` tells."""
    if not path.exists():
        return Earlier([], {})
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        was = plain["machine"]
        different = [name for name in SAME if was[name] != machine[name]]
        if not different:
            return Earlier([Row.from_dict(row) for row in plain["rows"]], was)
    except (OSError, ValueError, KeyError, TypeError):
        return Earlier([], {}, f"{path} is not of this command")
    changes = (f"{name} was {was[name]!r}, is {machine[name]!r}" for name in different)
    return Earlier([], {}, f"{path} was made otherwise: {'; '.join(changes)}")


def to_json(machine: dict[str, Any], rows: Iterable[Row]) -> str:
    """One row per line, so that a changed case is a changed line."""
    lines = ",\n".join("  " + json.dumps(row.to_dict()) for row in rows)
    head = json.dumps(machine, indent=2).replace("\n", "\n ")
    return f'{{\n "machine": {head},\n "rows": [\n{lines}\n ]\n}}\n'


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content at once: neither a crash nor a reader sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
