"""Checks of constructor arguments: the class nn.LSTM raises, one line, the value and the rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_int(where: str, name: str, value: object) -> int:
    """Return ``value`` as an int; TypeError unless it is one (numpy's integers are)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{where}: {name} must be an int; got {type(value).__name__} {value!r}.")
    return int(value)


def check_count(where: str, name: str, value: object, minimum: int = 1) -> int:
    """Return ``value`` as an int; TypeError or ValueError unless it is at least ``minimum``."""
    number = check_int(where, name, value)
    if number < minimum:
        raise ValueError(f"{where}: {name} must be at least {minimum}; got {number}.")
    return number


def check_flag(where: str, name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be a bool; got {type(value).__name__} {value!r}.")


def check_probability(where: str, name: str, value: object) -> float:
    """Return ``value`` as a float; ValueError unless it is a number in [0, 1]."""
    # bool is a number to Python, but "dropout=True" is a mistake to nn.LSTM
    number = -1.0 if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{where}: {name} must be a number in [0, 1]; got {value!r}.")
    return number


def is_autocasting(device: str) -> bool:
    """Whether autocast is on for a kind of device; never on those without it, such as "meta"."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def check_input_dtype(
    where: str, input: Tensor, dtype: torch.dtype, error: type[Exception] = ValueError
) -> None:
    """Raise ``error`` if an input is of another dtype than the parameters."""
    if input.dtype != dtype and not is_autocasting(input.device.type):
        raise error(
            f"{where}: input has dtype {input.dtype} but the parameters have {dtype}. "
            f"Convert one: input.to({dtype}) or module.to({input.dtype})."
        )


def check_state(where: str, state: Tensor, input: Tensor, dtype: torch.dtype) -> None:
    """Raise RuntimeError, as torch, if a state is not where the input is, or not of ``dtype``."""
    check_device(where, "hx", state, input)
    if state.dtype != dtype and not is_autocasting(state.device.type):
        raise RuntimeError(
            f"{where}: input and hidden tensors are not the same dtype; hx is {state.dtype}, "
            f"the parameters are {dtype}. Convert one: hx.to({dtype})."
        )


def check_device(where: str, name: str, tensor: Tensor, input: Tensor) -> None:
    """Raise RuntimeError, as torch, if a tensor is on another device than the input."""
    if tensor.device != input.device:
        raise RuntimeError(
            f"{where}: input and {name} are not at the same device; the input is on "
            f"{input.device}, {name} on {tensor.device}. Move one: {name}.to('{input.device}')."
        )


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


def check_cell_options(
    where: str,
    sizes: dict[str, int],
    flags: dict[str, bool],
    dropouts: tuple[float, float],
    comm_reads: str,
) -> None:
    """Raise unless the options of a cell can work."""
    for name, size in sizes.items():
        check_count(where, name, size)
    for name, flag in flags.items():
        check_flag(where, name, flag)
    for name, dropout in zip(("input_dropout", "comm_dropout"), dropouts, strict=True):
        check_probability(where, name, dropout)
    if sizes["input_value_size"] % sizes["num_input_heads"]:
        raise ValueError(
            f"{where}: num_input_heads must divide input_value_size={sizes['input_value_size']}; "
            f"got {sizes['num_input_heads']}."
        )
    if comm_reads not in ("candidate", "state"):
        raise ValueError(f"{where}: comm_reads must be 'candidate' or 'state'; got {comm_reads!r}.")


def per_layer(
    where: str, name: str, value: int | list[int] | tuple[int, ...], num_layers: int
) -> tuple[int, ...]:
    """One number for every layer, from one number or one per layer.

    Raises:
        TypeError: for anything but an int or a list or tuple.
        ValueError: for a list of the wrong length.
    """
    if not isinstance(value, list | tuple):
        return (check_int(where, name, value),) * num_layers
    if len(value) != num_layers:
        raise ValueError(
            f"{where}: {name} must be one number or one per layer ({num_layers}); got {value!r}."
        )
    return tuple(check_int(where, name, number) for number in value)


def option_defaults(constructor: Callable[..., None]) -> dict[str, Any]:
    """The defaults of a constructor by name, without device and dtype: what a repr leaves out."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.default is not parameter.empty and name not in ("device", "dtype")
    }
