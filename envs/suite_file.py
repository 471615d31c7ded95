"""A suite by its name, or a user's own suite from a TOML file."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.suites import SUITES, Suite, Task, get_task
from lab.disk.named_files import read_text
from lab.words import did_you_mean

__all__ = ["get_suite", "read_suite"]

_SUITE_KEYS = ("name", "description", "train", "unseen", "chance", "preset")
#: Names of run folders contain the name of the training task.
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_TASK_KEYS = ("id", "name", "gym_kwargs", "envpool_id", "envpool_kwargs", "success", "wrappers")


def get_suite(name: str) -> Suite:
    """The suite called ``name``, or that of the file if ``name`` ends in ``.toml``.

    Raises:
        ValueError: if there is none; the message names the closest one. For a file, if it cannot
            be read or does not describe a suite.

    >>> [task.name for task in get_suite("doorkey").unseen]
    ['DoorKey-6x6', 'DoorKey-8x8', 'DoorKey-16x16']
    """
    if not isinstance(name, str):
        raise ValueError(f"a suite is given by name or as a file's path; got {name!r}.")
    if name.endswith(".toml"):
        return read_suite(name)
    if name not in SUITES:
        hint = did_you_mean(name, SUITES, f"; the suites are {', '.join(SUITES)}.")
        raise ValueError(f"unknown suite {name!r}{hint}")
    return SUITES[name]


def read_suite(path: str | os.PathLike[str]) -> Suite:
    """The suite a file describes.

    A task is an environment id, or a table with ``id`` and any of ``name``, ``gym_kwargs``,
    ``envpool_id``, ``envpool_kwargs``, ``success`` and ``wrappers`` (see :class:`Task`)::

        name = "lavagap"
        description = "Step over a strip of lava; the room grows."
        train = "MiniGrid-LavaGapS5-v0"
        unseen = ["MiniGrid-LavaGapS6-v0", { id = "MiniGrid-LavaGapS7-v0", name = "LavaGap-7x7" }]
        chance = 0.02

        [preset]
        total_steps = 200_000

    ``name``, ``train`` and ``unseen`` are needed. Settings in ``preset`` are checked when a run is
    configured.

    Raises:
        ValueError: in one line that names the file, if it does not describe a suite.
    """
    file = Path(path)
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        raise ValueError(f"suite {str(path)!r} cannot be read: {error.strerror}.") from None
    return _read(str(file.resolve()), str(path), changed)


# A configuration asks for its task again and again.
@lru_cache(maxsize=32)
def _read(resolved: str, path: str, changed: int) -> Suite:
    try:
        table = tomllib.loads(read_text(resolved))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"suite {path!r} cannot be read: {error}.") from None
    try:
        return _suite(table)
    except (ValueError, TypeError) as error:
        raise ValueError(f"suite {path!r}: {error}") from None


def _suite(table: Mapping[str, Any]) -> Suite:
    _refuse_unknown(table, _SUITE_KEYS)
    unseen = _get(table, "unseen", list)
    tasks = [_task("train", table.get("train"))]
    tasks += [_task(f"unseen[{i}]", value) for i, value in enumerate(unseen)]
    for label in ("id", "name"):
        values = [getattr(task, label) for task in tasks]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            rule = "each may stand once" if label == "id" else "give one another name"
            raise ValueError(f"two tasks have the {label} {twice[0]!r}; {rule}.")
    for label in (_get(table, "name", str), tasks[0].name):
        if not _FOLDER.fullmatch(label):
            raise ValueError(
                f"the name {label!r} would not do for a folder; use letters, digits, '.', '_', '-'."
            )
    for task in tasks:
        if not task.name.isprintable() or "|" in task.name:
            raise ValueError(f"the name {task.name!r} would not do for a table; leave out '|'.")
        if "," in task.name or task.name != task.name.strip():
            raise ValueError(
                f"the name {task.name!r} could not be given to --tasks, which takes several: "
                f"leave out ',' and spaces at its ends."
            )
    chance = table.get("chance")
    if chance is not None and not (type(chance) in (int, float) and 0 <= chance <= 1):
        raise ValueError(f"chance must be a number in [0, 1]; got {chance!r}.")
    return Suite(
        name=_get(table, "name", str),
        description=_get(table, "description", str, ""),
        train=tasks[0],
        unseen=tuple(tasks[1:]),
        chance=None if chance is None else float(chance),
        preset=_get(table, "preset", dict, {}),
    )


def _task(where: str, value: Any) -> Task:
    if isinstance(value, str):
        return get_task(value)
    if not isinstance(value, dict) or "id" not in value:
        raise ValueError(f"{where} must be an environment id or a table with an id; got {value!r}.")
    _refuse_unknown(value, _TASK_KEYS, f"{where}.")
    get_task(_get(value, "id", str))  # there is such an environment
    for key in ("gym_kwargs", "envpool_kwargs"):
        _get(value, key, dict, {})
    for key in ("name", "envpool_id", "success"):
        _get(value, key, str, "")
    wrappers = _get(value, "wrappers", list, [])
    if not all(isinstance(name, str) for name in wrappers):
        raise ValueError(f"{where}.wrappers must be a list of names; got {wrappers!r}.")
    return Task(**{**value, "wrappers": tuple(wrappers)})


_KINDS: dict[type, str] = {str: "a text", list: "a list", dict: "a table"}


def _get(table: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind):
        got = "is missing" if value is None else f"is {value!r}"
        raise ValueError(f"{key} must be {_KINDS[kind]}; it {got}.")
    return value


def _refuse_unknown(table: Mapping[str, Any], known: tuple[str, ...], prefix: str = "") -> None:
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known, f"; there are {', '.join(known)}.")
            raise ValueError(f"unknown key {prefix + key!r}{hint}")
