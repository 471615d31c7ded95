"""Statistics of the latest episodes of all environments."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from agents.learning.rollout import Episode

#: Episode statistics are means over at least this many recent episodes.
EPISODE_WINDOW = 100


class RecentEpisodes:
    """The latest episodes of every environment, with the same weight for each environment.

    The last 100 episodes to finish would favour short ones, which in MiniGrid are the successful
    ones: at the start of training nothing else has finished. For the same reason there are no
    statistics before every environment has finished an episode.
    """

    def __init__(self, num_envs: int) -> None:
        per_env = math.ceil(EPISODE_WINDOW / num_envs)
        self._episodes: list[deque[Episode]] = [deque(maxlen=per_env) for _ in range(num_envs)]

    def add(self, episodes: Iterable[Episode]) -> None:
        """Take in newly finished episodes."""
        for episode in episodes:
            self._episodes[episode.env].append(episode)

    def statistics(self) -> dict[str, float]:
        """Means over environments; NaN until every one of them has finished an episode.

        The success rate is NaN, too, as long as that of any episode is not known.
        """
        known = all(self._episodes)

        def mean(value: Callable[[Episode], float]) -> float:
            # Over environments of the mean of each: no environment counts more for being quick.
            if not known:
                return float("nan")
            return float(np.mean([np.mean([value(e) for e in own]) for own in self._episodes]))

        return {
            "episode_return_mean": mean(lambda e: e.reward),
            "episode_length_mean": mean(lambda e: e.length),
            "success_rate": mean(_success),
        }

    def to_tensor(self) -> Tensor:
        """The episodes, a row each, as :meth:`add_rows` takes them."""
        return episode_rows(episode for own in self._episodes for episode in own)

    def add_rows(self, rows: Tensor) -> None:
        """Take in episodes that are rows ``(N, 4)`` of a tensor."""
        self.add(
            Episode(
                env=int(env),
                reward=reward,
                length=int(length),
                success=None if math.isnan(success) else bool(success),
            )
            for env, reward, length, success in rows.tolist()
        )


def _success(episode: Episode) -> float:
    return math.nan if episode.success is None else episode.success


def episode_rows(episodes: Iterable[Episode], first_env: int = 0) -> Tensor:
    """Episodes as rows ``(N, 4)``: environment (plus ``first_env``), return, length, success.

    Success that is not known is NaN.
    """
    rows = [[first_env + e.env, e.reward, e.length, _success(e)] for e in episodes]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(Episode._fields))
