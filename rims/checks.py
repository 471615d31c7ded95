"""Checks of constructor arguments: the class nn.LSTM raises, one line, the value and the rule."""

from __future__ import annotations


def check_int(where: str, name: str, value: int) -> None:
    """Raise TypeError unless ``value`` is an int."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be an int; got {type(value).__name__} {value!r}.")


def check_count(where: str, name: str, value: int, minimum: int = 1) -> None:
    """Raise unless ``value`` is an int of at least ``minimum`` (TypeError or ValueError)."""
    check_int(where, name, value)
    if value < minimum:
        raise ValueError(f"{where}: {name} must be at least {minimum}; got {value}.")


def check_flag(where: str, name: str, value: bool) -> None:
    """Raise TypeError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be a bool; got {type(value).__name__} {value!r}.")


def check_probability(where: str, name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{where}: {name} must be a number in [0, 1]; got {value!r}.")


def check_mechanisms(where: str, hidden_size: int, num_rims: int, k: int, proj_size: int) -> None:
    """Raise unless the sizes of a cell fit each other."""
    check_count(where, "hidden_size", hidden_size)
    for name, value in (("num_rims", num_rims), ("k", k), ("proj_size", proj_size)):
        check_int(where, name, value)
    if num_rims < 1 or hidden_size % num_rims:
        raise ValueError(
            f"{where}: num_rims must divide hidden_size; got hidden_size={hidden_size}, "
            f"num_rims={num_rims}. hidden_size is the total over all mechanisms."
        )
    if not 1 <= k <= num_rims:
        raise ValueError(
            f"{where}: k must lie in [1, num_rims={num_rims}]; got k={k}. "
            "It counts the mechanisms active at each step."
        )
    if not 0 <= proj_size < hidden_size or proj_size % num_rims:
        raise ValueError(
            f"{where}: proj_size must be 0 or a multiple of num_rims={num_rims} below "
            f"hidden_size={hidden_size}; got {proj_size}."
        )


def per_layer(
    where: str, name: str, value: int | list[int] | tuple[int, ...], num_layers: int
) -> tuple[int, ...]:
    """One number for every layer, from one number or one per layer.

    Raises:
        TypeError: for anything but an int or a list or tuple.
        ValueError: for a list of the wrong length.
    """
    if not isinstance(value, list | tuple):
        check_count(where, name, value)
        return (value,) * num_layers
    if len(value) != num_layers:
        raise ValueError(
            f"{where}: {name} must be one number or one per layer ({num_layers}); got {value!r}."
        )
    return tuple(value)
