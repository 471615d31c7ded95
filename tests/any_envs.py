"""Small environments with all kinds of spaces. Importing this module registers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

STEPS = 5  # until an episode is cut

NUMBERS = spaces.Box(-np.inf, np.inf, (3,), np.float32)
TWO = spaces.Discrete(2)
MIXED = spaces.Dict(
    place=spaces.Discrete(3, start=1),
    camera=spaces.Box(0, 255, (36, 40, 3), np.uint8),
    inner=spaces.Dict(speed=spaces.Box(-5, 5, (2,), np.float64), flags=spaces.MultiBinary(2)),
    bytes=spaces.Box(0, 255, (2,), np.uint8),
    two=spaces.MultiDiscrete([2, 4]),
)


class Anything(gymnasium.Env[Any, Any]):
    """Shows samples of a space, some of them again and again; rewards the middle of the actions."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        observations: spaces.Space[Any],
        actions: spaces.Space[Any],
        render_mode: str | None = None,
        broken: Any = None,
    ) -> None:
        self.observation_space, self.action_space = observations, actions
        self.render_mode = render_mode
        self.broken = broken  # shown in the third step
        self.taken: list[Any] = []
        self.count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return self._see(), {}

    def _see(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(6)))
        return self.observation_space.sample()

    def step(self, action: Any) -> Any:
        self.taken.append(action)
        self.count += 1
        seen = self.broken if self.broken is not None and self.count == 3 else self._see()
        reward = -float(np.abs(np.asarray(action, dtype=np.float64)).sum())
        return seen, reward, False, self.count >= STEPS, {}

    def render(self) -> Any:
        return np.full((32, 32, 3), self.count, dtype=np.uint8)


class Unseen(Anything):
    """Cannot be drawn."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def render(self) -> Any:
        raise NotImplementedError


class Doubled(gymnasium.ObservationWrapper[Any, Any, Any]):
    """A user's own wrapper: numbers are twice as large."""

    def observation(self, observation: Any) -> Any:
        return 2 * observation


def _maker(observations: Any, actions: Any, kind: Any = Anything) -> Callable[..., Any]:
    return lambda **given: kind(observations, actions, **given)


_MADE = {
    "Numbers": (NUMBERS, TWO),
    "Place": (spaces.Discrete(5, start=-2), spaces.Discrete(3, start=-1)),
    "Places": (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete(np.array([[2], [3]]))),
    "Box": (NUMBERS, spaces.Box(np.array([-0.5, -0.1]), np.array([1.0, np.inf]), dtype=np.float64)),
    "Image": (spaces.Box(0, 255, (20, 24, 1), np.uint8), TWO),
    "First": (spaces.Box(0, 255, (4, 36, 36), np.uint8), TWO),
    "Mixed": (MIXED, spaces.Box(-1, 1, (2,), np.float32)),
    "Rows": (spaces.Box(-1, 1, (4, 3), np.float32), TWO),
    "Floats": (spaces.Box(0, 1, (20, 24, 3), np.float32), TWO),
    "Words": (spaces.Dict(a=NUMBERS, word=spaces.Text(9)), TWO),
    "Many": (NUMBERS, spaces.Discrete(257)),
    "Steps": (NUMBERS, spaces.Box(0, 5, (2,), np.int64)),
    "Binary": (NUMBERS, spaces.MultiBinary(3)),
}

for _name, (_observations, _actions) in _MADE.items():
    gymnasium.register(f"Any-{_name}-v0", entry_point=_maker(_observations, _actions))
gymnasium.register("Any-Unseen-v0", entry_point=_maker(NUMBERS, TWO, Unseen))
