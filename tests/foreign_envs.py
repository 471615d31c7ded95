"""Environments as other people write them. Importing this module registers them.

Each is a room of MiniGrid in which one thing is not as it is in minigrid's own environments.
"""

# Nobody who writes one checks types against minigrid's partial hints.
# mypy: disable-error-code="override, no-untyped-call, attr-defined, assignment"

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FilterObservation
from minigrid.core.constants import COLOR_TO_IDX, COLORS, IDX_TO_COLOR, OBJECT_TO_IDX
from minigrid.core.world_object import Ball, WorldObj
from minigrid.envs import EmptyEnv
from minigrid.wrappers import (
    ActionBonus,
    FullyObsWrapper,
    ImgObsWrapper,
    RGBImgObsWrapper,
    RGBImgPartialObsWrapper,
    SymbolicObsWrapper,
)

STEPS = 6  # until an episode is cut


class Room(EmptyEnv):
    """An empty room that ends after a few steps."""

    def __init__(self, size: int = 5, **given: Any) -> None:
        super().__init__(size=size, **{"max_steps": STEPS, **given})


class Telling(Room):
    """Says what success is: to have turned left last. Its reward, an integer, says nothing."""

    word: ClassVar[str] = "is_success"

    def step(self, action: int) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 1, terminated, truncated, {**info, self.word: action == 0}


class TellingOtherwise(Telling):
    """The other word, as an array of one number."""

    word = "success"


class TellingSometimes(Telling):
    """Says nothing of some episodes."""

    def step(self, action: int) -> Any:
        *rest, info = super().step(action)
        return *rest, info if info["is_success"] else {}


class Orange(Room):
    """With a ball of a colour of its own, which has to be known to minigrid first."""

    def _gen_grid(self, width: int, height: int) -> None:
        super()._gen_grid(width, height)
        self.put_obj(Ball("orange"), 2, 1)


class Teapot(WorldObj):
    """An object of its own, in state 1."""

    def __init__(self) -> None:
        super().__init__("teapot", "blue")

    def encode(self) -> tuple[int, int, int]:
        return OBJECT_TO_IDX["teapot"], COLOR_TO_IDX["blue"], 1

    def render(self, img: Any) -> None:
        """Nothing to see."""


class Kitchen(Room):
    """With that object."""

    def _gen_grid(self, width: int, height: int) -> None:
        super()._gen_grid(width, height)
        self.put_obj(Teapot(), 2, 1)


class Later(Room):
    """Shows after a few steps what no agent was told of."""

    def step(self, action: int) -> Any:
        observation, *rest = super().step(action)
        if self.step_count == 3:
            observation["image"][0, 0, 1] = 77
        return observation, *rest


class BadReward(Room):
    """Gives, in its third step, a reward that is no finite number."""

    def __init__(self, reward: Any, **given: Any) -> None:
        super().__init__(**given)
        self.reward = reward

    def step(self, action: int) -> Any:
        observation, _, *rest = super().step(action)
        return observation, self.reward if self.step_count == 3 else 0, *rest


class Floats(Room):
    """Gives NaN in its view."""

    def step(self, action: int) -> Any:
        observation, *rest = super().step(action)
        image = np.full((7, 7, 3), np.nan) if self.step_count == 3 else observation["image"]
        return {**observation, "image": image}, *rest


class Raising(Room):
    """Prints, and raises in its third step."""

    def step(self, action: int) -> Any:
        print("I am about to step")
        if self.step_count == 2:
            raise ZeroDivisionError("over\nthe hills")
        return super().step(action)


class Counting(Room):
    """Three actions without names, calculated with; the observation's keys in another order."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.action_space = spaces.Discrete(3)
        self.actions = None
        self.sums: list[int] = []

    def gen_obs(self) -> Any:
        return dict(reversed(super().gen_obs().items()))

    def step(self, action: int) -> Any:
        self.sums.append(action - 1)  # of bytes this would be 255
        assert -1 <= self.sums[-1] <= 1
        self.step_count += 1
        return self.gen_obs(), 0.25 * action, False, self.step_count >= STEPS, {}


class Endless(Counting):
    """Never ends an episode."""

    def step(self, action: int) -> Any:
        self.step_count = 0
        return super().step(action)


class Speaking(Room):
    """A mission of each level's own."""

    words: ClassVar[tuple[str, ...]] = ("Fetch the red key", "fetch a blue ball")

    def _gen_grid(self, width: int, height: int) -> None:
        super()._gen_grid(width, height)
        self.mission = self.words[int(self.np_random.integers(len(self.words)))]


class SpeakingOtherwise(Speaking):
    """In words that agents do not know."""

    words = ("fetch the teapot", "fetch the samovar")


class Blind(Room):
    """Gives no picture to a film."""

    def render(self) -> Any:
        return None


class Odd(Room):
    """One part of an observation that is not as in MiniGrid."""

    def __init__(self, part: str, space: spaces.Space[Any], **given: Any) -> None:
        super().__init__(**given)
        assert isinstance(self.observation_space, spaces.Dict)
        self.part, self.other = part, space
        self.observation_space = spaces.Dict({**self.observation_space.spaces, part: space})

    def gen_obs(self) -> Any:
        return {**super().gen_obs(), self.part: self.other.sample()}


def know_own_things() -> None:
    """Tell minigrid of the colour and the object above, as its users do."""
    COLORS["orange"] = np.array([255, 165, 0])
    COLOR_TO_IDX["orange"], IDX_TO_COLOR[6] = 6, "orange"
    OBJECT_TO_IDX["teapot"] = 11


def forget_own_things() -> None:
    """Undo it."""
    for table, key in ((COLORS, "orange"), (COLOR_TO_IDX, "orange"), (OBJECT_TO_IDX, "teapot")):
        table.pop(key, None)
    IDX_TO_COLOR.pop(6, None)


_MADE: dict[str, Any] = {
    "Room": Room,
    "Bonus": lambda **k: ActionBonus(Room(**k)),
    "Telling": Telling,
    "TellingOtherwise": TellingOtherwise,
    "TellingSometimes": TellingSometimes,
    "Orange": Orange,
    "Kitchen": Kitchen,
    "Later": Later,
    "NaN": lambda **k: BadReward(float("nan"), **k),
    "Infinite": lambda **k: BadReward(1e39, **k),  # too large for 32 bits
    "Text": lambda **k: BadReward("much", **k),
    "Floats": Floats,
    "Raising": Raising,
    "Counting": Counting,
    "Endless": Endless,
    "Speaking": Speaking,
    "SpeakingOtherwise": SpeakingOtherwise,
    "Blind": Blind,
    "View9": lambda **k: Room(agent_view_size=9, **k),
    "Full": lambda **k: FullyObsWrapper(Room(**k)),
    "Full6": lambda **k: FullyObsWrapper(Room(size=6, **k)),
    "ViewAlone": lambda **k: ImgObsWrapper(Room(**k)),
    "NoDirection": lambda **k: FilterObservation(Room(**k), ["image", "mission"]),
    "RGB": lambda **k: RGBImgObsWrapper(Room(**k)),
    "RGBPartial": lambda **k: RGBImgPartialObsWrapper(Room(**k)),
    "Symbolic": lambda **k: SymbolicObsWrapper(Room(**k)),
    "Inventory": lambda **k: Odd("inventory", spaces.Discrete(3), **k),
    "Compass": lambda **k: Odd("direction", spaces.Discrete(8), **k),
    "Tokens": lambda **k: Odd("mission", spaces.MultiDiscrete([9, 9]), **k),
    "NoRenderMode": lambda: Room(),
}

for _name, _make in _MADE.items():
    gymnasium.register(f"Foreign-{_name}-v0", entry_point=_make)
