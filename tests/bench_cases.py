"""A case of ``rims bench cells`` that takes no time."""

from __future__ import annotations

from rims.bench.cases import Case, Settings, Size

SIZE = Size(6, 4, 2, 1)
CASE = Case(SIZE, "lstm", "training", 2, 3)
SETTINGS = Settings(
    sizes=(SIZE,),
    kinds=("lstm", "gru"),
    passes=("inference", "training"),
    batches=(2,),
    steps=(3,),
    rounds=3,
    seconds_per_case=1.0,
    device="cpu",
    threads=1,
    memory=False,
)
