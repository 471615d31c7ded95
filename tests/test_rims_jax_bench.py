"""``rims bench jax``: what it measures and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Rims, assert_one_line
from jax_cases import assert_near
from rims.bench.cases import Settings, Size
from rims.jax import bench

TINY = ("bench", "jax", "--size", "3,8,4,2", "--batch", "2", "--steps", "3", "--rounds", "3")


def grid(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "sizes": (Size(3, 8, 4, 2),),
        "kinds": ("lstm",),
        "passes": ("inference", "training"),
        "batches": (2,),
        "steps": (3,),
        "rounds": 3,
        "seconds_per_case": 0.0,
        "device": "cpu",
        "threads": 1,
        "memory": False,
    }
    return Settings(**{**given, **changes})


@pytest.mark.long
def test_writes_rows_and_tables(rims: Rims) -> None:
    result = rims(*TINY, "--kind", "gru", "--seconds-per-case", "0", "--out", "out")
    assert result.code == 0, result.err
    plain: Any = json.loads(Path("out", "jax.json").read_text())
    assert {"jax", "flax", "torch", "threads", "commit"} <= plain["machine"].keys()
    shown = [(row["pass"], row["gradient_of_input"]) for row in plain["rows"]]
    assert shown == [("inference", False), ("training", False), ("training", True)]
    for row in plain["rows"]:
        names = [contender["name"] for contender in row["contenders"]]
        ours = ["rims.jax RIM_GRU", "rims.jax RIM_GRU, without Numba", "rims RIM_GRU, torch"]
        assert names == ["flax GRUCell", *ours]
        assert row["contenders"][0]["ratio"] == 1
        assert all(c["ratio_low"] <= c["ratio"] <= c["ratio_high"] for c in row["contenders"])
        assert len(row["rounds_ms"]) == 3
    assert Path("out", "jax.md").read_text() == result.out
    assert result.err.count("\n") == 3


@pytest.mark.long
def test_ours_compute_the_same_in_both_libraries() -> None:
    for contest in bench.contests(grid()):
        of_flax, ours, by_xla, of_torch = (c.work() for c in bench.contenders(contest, "cpu"))
        assert of_flax.shape == ours.shape
        assert_near(ours, of_torch, tolerance=1e-5)
        assert_near(by_xla, of_torch, tolerance=1e-5)


def test_a_gpu_that_is_not_there_is_one_line(rims: Rims) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "CUDA" in assert_one_line(rims(*TINY, "--device", "cuda", "--out", "out"))
