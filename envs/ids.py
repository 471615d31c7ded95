"""Ids of environments: their modules, registered ids, and which are minigrid's own.

Gymnasium and minigrid are imported inside the functions: that takes 0.3 s.
"""

from __future__ import annotations

import functools
from typing import Any, Final, Literal

from lab.importing import import_from_here
from lab.words import one_line

__all__ = [
    "Success",
    "is_builtin",
    "is_stock",
    "known_ids",
    "load_id",
    "modules_of",
    "return_range",
    "success_rule",
]

Success = Literal["", "reward"]
"""How success is known where no environment says: not at all, or by a last reward above 0."""

#: Where minigrid defines the environments of its ids.
_BUILTIN: Final = "minigrid.envs"

#: Classes of minigrid that give no reward for success: one has no goal, one punishes collisions.
_NO_GOAL: Final = "PlaygroundEnv"
_PUNISHES: Final = "DynamicObstaclesEnv"


def load_id(id: str) -> str:
    """Import the module that ``id`` names, if it names one; the id without it.

    Modules are looked for in the current directory first, as ``python -m`` does.

    Raises:
        ValueError: in one line, if there is no such module or importing it fails.
    """
    module, _, name = id.rpartition(":")
    if not module:
        return name
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"environment {id!r} must have the form package.module:Id.")
    try:
        import_from_here(module)
    except (Exception, SystemExit) as error:  # it is the user's code: anything can happen in it
        raise ValueError(
            f"environment {id!r}: module {module!r} cannot be imported ({one_line(error)}). "
            "Call from the folder it is in, or put that on PYTHONPATH."
        ) from error
    return name


def modules_of(id: str) -> list[str]:
    """The modules in which an environment is registered and made; none for minigrid's own.

    >>> modules_of("MiniGrid-Empty-5x5-v0"), modules_of("CartPole-v1")
    ([], ['gymnasium.envs.classic_control.cartpole'])
    """
    import gymnasium

    name, found = load_id(id), {id.rpartition(":")[0]}
    spec = gymnasium.registry.get(name)
    if spec is not None and not is_builtin(id):
        makers = [spec.entry_point, *(wrapper.entry_point for wrapper in spec.additional_wrappers)]
        found |= {_module_of(maker) for maker in makers if maker is not None}
    return sorted(found - {""})


def _module_of(maker: Any) -> str:
    if isinstance(maker, str):
        return maker.partition(":")[0]
    while isinstance(maker, functools.partial):
        maker = maker.func
    return str(maker.__module__)


def known_ids() -> list[str]:
    """Every id that is registered: minigrid's, gymnasium's, those of plugins and of modules."""
    import gymnasium
    import minigrid  # noqa: F401  (registers its environments)

    return list(gymnasium.registry)


def is_builtin(id: str) -> bool:
    """Whether an id makes one of minigrid's own environments, as they are.

    What is true of those (observations, actions, rewards) is assumed of no other environment, be it
    a class of a user's own or one of minigrid's in a wrapper.

    >>> is_builtin("MiniGrid-DoorKey-5x5-v0"), is_builtin("CartPole-v1")
    (True, False)
    """
    return _builtin_class(id) is not None


def is_stock(id: str) -> bool:
    """Whether it is one of minigrid's own and agents see as much in it as MiniGrid's usually do."""
    import gymnasium

    spec = gymnasium.registry.get(_name(id)) if is_builtin(id) else None
    return spec is not None and "agent_view_size" not in spec.kwargs


def success_rule(id: str) -> Success:
    """The success rule of an environment that reports none; only minigrid's own have one.

    They give a reward at the end alone, and only for success, so that an episode which ends with a
    reward above 0 was one. ``MiniGrid-Playground-v0`` has no goal.

    >>> success_rule("MiniGrid-DoorKey-5x5-v0"), success_rule("MiniGrid-Playground-v0")
    ('reward', '')
    """
    return "" if _builtin_class(id) in (None, _NO_GOAL) else "reward"


def return_range(id: str) -> tuple[float, float] | None:
    """Smallest and largest return of one of minigrid's own environments; None for any other.

    >>> return_range("MiniGrid-DoorKey-5x5-v0"), return_range("CartPole-v1")
    ((0.0, 1.0), None)
    """
    name = _builtin_class(id)
    if name is None:
        return None
    return (-1.0, 1.0) if name == _PUNISHES else (0.0, 1.0)


def _builtin_class(id: str) -> str | None:
    import gymnasium
    import minigrid  # noqa: F401  (registers its environments)

    spec = gymnasium.registry.get(_name(id))
    if spec is None or not isinstance(spec.entry_point, str) or spec.additional_wrappers:
        return None
    module, _, name = spec.entry_point.partition(":")
    return name if f"{module}.".startswith(f"{_BUILTIN}.") else None


def _name(id: str) -> str:
    return id.rpartition(":")[2]
