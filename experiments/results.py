"""The results of a finished run: the numbers that judge its model, and of which weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.snapshot import judged_checkpoint
from lab.disk.manifest import is_finite_number
from lab.disk.plain_files import kind_of, read_plain_text

RESULTS_NAME = "results.json"


class Results(NamedTuple):
    """The content of a finished run's ``results.json``."""

    metrics: dict[str, float]  # by key of a row
    parameters: int
    seconds: float  # of training steps, without making data and evaluation
    steps: int
    judged_epoch: int  # whose weights were judged, counted from 1
    data: str | None = None  # what tells the data from others; None: of an earlier version
    checkpoint: str | None = None  # of whose weights they are; None: of an earlier version

    def to_json(self) -> str:
        """The content of the file; numbers that are not finite are left out."""
        metrics = {name: v for name, v in self.metrics.items() if math.isfinite(v)}
        return json.dumps(self._replace(metrics=metrics)._asdict(), indent=2) + "\n"


#: A check for each field of :class:`Results`.
_RULES: tuple[Callable[[Any], bool], ...] = (
    lambda v: isinstance(v, dict) and all(is_finite_number(number) for number in v.values()),
    lambda v: type(v) is int and v >= 0,
    lambda v: is_finite_number(v) and v >= 0,
    lambda v: type(v) is int and v >= 0,
    lambda v: type(v) is int and v >= 0,
    lambda v: v is None or type(v) is str,
    lambda v: v is None or type(v) is str,
)


def read_results(folder: Path) -> Results | None:
    """The results of a run, if it is finished.

    Raises:
        ValueError: in one line, if the file is damaged.
    """
    path = folder / RESULTS_NAME
    if not kind_of(path):
        return None
    try:
        results = Results(**json.loads(read_plain_text(path)))
        if all(holds(value) for holds, value in zip(_RULES, results, strict=True)):
            return results
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    raise ValueError(f"{path} is damaged; remove it to judge the run again.") from None


def kept_results(folder: Path) -> Results | None:
    """The results of a run, if they are those of its last checkpoint as far as there still is one.

    Raises:
        ValueError: as :func:`read_results`.
    """
    results = read_results(folder)
    if results is None or judged_checkpoint(folder) in (None, results.checkpoint):
        return results
    return None
