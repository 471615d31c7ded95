"""A small sweep, and what can be changed in it."""

from __future__ import annotations

import copy
from typing import Any

from agents.sweep.definition import Sweep, parse_sweep

BASE: dict[str, Any] = {
    "sweep": {"trials": 5},
    "settings": {"suite": "empty", "total_steps": 256, "num_envs": 8, "minibatches": 2},
    "search": {
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "epochs": {"low": 1, "high": 4},
        "core": {"choices": ["none", "gru"]},
    },
}


def document(**changes: dict[str, Any]) -> dict[str, Any]:
    """BASE with keys of its tables replaced; None takes one out."""
    result = copy.deepcopy(BASE)
    for table, values in changes.items():
        merged = {**result[table], **values}
        result[table] = {name: value for name, value in merged.items() if value is not None}
    return result


def make_sweep(**changes: dict[str, Any]) -> Sweep:
    return parse_sweep(document(**changes))
