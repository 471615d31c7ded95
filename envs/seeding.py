"""Seeds of levels: which levels a run trains on and which it is evaluated on."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

__all__ = ["SEED_LIMIT", "Split", "level_seeds"]

Split = Literal["train", "eval"]

SEED_LIMIT: Final = 2**31
"""Seeds are below this: EnvPool keeps them in a signed 32-bit integer."""

_SPLITS: Final[dict[Split, int]] = {"train": 0, "eval": 1}
_BITS_PER_SPLIT: Final = 30


def level_seeds(run_seed: int, split: Split, count: int, restart: int = 0) -> list[int]:
    """One seed per environment, for a run and a split.

    Environments are numbered over all processes that step them: each takes its part of the list.

    Neighbouring integers must not be used for this: both backends give environment ``i`` of an
    integer seed ``s`` the levels of ``s + i``, so runs seeded 1 and 2 would share the levels of all
    environments but one. Here every seed is a hash of ``(run_seed, split, restart, i)``.

    Training seeds lie in ``[0, 2**30)`` and evaluation seeds in ``[2**30, 2**31)``, whatever the
    run, so no evaluation seed was ever trained on. This separates the seeds, not the levels
    themselves: a tiny task has few distinct levels (DoorKey-5x5 shows a few dozen first views), and
    different seeds then make equal ones.

    Args:
        run_seed: the seed of the run, ``0 <= run_seed < 2**31``.
        split: ``"train"`` or ``"eval"``.
        count: number of seeds. A shorter list is a prefix of a longer one.
        restart: how often the environments have been made anew; each time they get other levels.

    Raises:
        ValueError: if an argument is outside its range.

    >>> level_seeds(1, "train", 3) == level_seeds(1, "train", 5)[:3]
    True
    """
    if not 0 <= run_seed < SEED_LIMIT:
        raise ValueError(f"level_seeds: run_seed must lie in [0, 2**31); got {run_seed}.")
    if split not in _SPLITS:
        raise ValueError(f"level_seeds: split must be 'train' or 'eval'; got {split!r}.")
    if count < 0 or restart < 0:
        raise ValueError(f"level_seeds: count and restart must be >= 0; got {count} and {restart}.")
    index = _SPLITS[split]
    seeds = []
    for env in range(count):
        (word,) = np.random.SeedSequence((run_seed, index, restart, env)).generate_state(1)
        seeds.append((int(word) % 2**_BITS_PER_SPLIT) | (index << _BITS_PER_SPLIT))
    return seeds
