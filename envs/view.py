"""The agent's view: its size, and how many objects, colours and states its cells can hold."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Self

__all__ = ["CHANNELS", "STOCK_VIEW", "View", "minigrid_view"]

#: Meaning of the three numbers of a cell.
CHANNELS: Final = ("object", "colour", "state")

_LARGEST: Final = 256  # categories that a byte can tell apart


class View(NamedTuple):
    """Cells, each an object, a colour and a state, all of which are categories."""

    width: int
    height: int
    categories: tuple[int, int, int]
    """How many objects, colours and states there are."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an observation's image."""
        return self.width, self.height, len(CHANNELS)

    @property
    def cells(self) -> int:
        """The number of cells."""
        return self.width * self.height

    def holds(self, other: View) -> bool:
        """Whether all that ``other`` can show has a place here.

        >>> STOCK_VIEW.holds(View(7, 7, (11, 7, 4)))
        False
        """
        enough = all(a >= b for a, b in zip(self.categories, other.categories, strict=True))
        return self.shape == other.shape and enough

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read a view from JSON, which somebody may have edited.

        Raises:
            TypeError: if it is none.

        >>> View.parse([9, 9, [11, 6, 4]])
        View(width=9, height=9, categories=(11, 6, 4))
        """
        try:
            width, height, (objects, colours, states) = value
        except (TypeError, ValueError):
            raise TypeError(f"view must be [width, height, [3 numbers]]; got {value!r}") from None
        numbers = (width, height, objects, colours, states)
        if not all(type(n) is int and 1 <= n <= _LARGEST for n in numbers):
            raise TypeError(f"view must hold whole numbers from 1 to {_LARGEST}; got {value!r}")
        return cls(width, height, (objects, colours, states))


#: The view of MiniGrid as it comes, and of every EnvPool environment. Directions are states, too.
STOCK_VIEW: Final = View(7, 7, (11, 6, 4))


def minigrid_view(width: int = STOCK_VIEW.width, height: int = STOCK_VIEW.height) -> View:
    """A view with all objects, colours and states that minigrid knows at this moment.

    Own ones are named in ``minigrid.core.constants``, and count from then on.

    >>> minigrid_view(9, 9)
    View(width=9, height=9, categories=(11, 6, 4))
    """
    from minigrid.core import constants

    tables = (constants.OBJECT_TO_IDX, constants.COLOR_TO_IDX, constants.STATE_TO_IDX)
    objects, colours, states = (
        max(stock, 1 + max(table.values()))
        for stock, table in zip(STOCK_VIEW.categories, tables, strict=True)
    )
    return View(width, height, (objects, colours, states))
