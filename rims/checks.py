"""Options of cells, and checks of constructor arguments.

Errors are of the class nn.LSTM raises, in one line, with the value and the rule.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor

#: What communication reads of an inactive mechanism: its discarded candidate or its kept state.
CommReads = Literal["candidate", "state"]

#: Factor of what a mechanism reads of the input: its attention on it, or 1.
InputGate = Literal["null", "none", "straight_through"]

#: What a mechanism's attention on the input competes with: a null slot or the other mechanisms.
Competition = Literal["null", "mechanisms"]

#: How communication changes a candidate: it is added, or mixed in by its gate.
CommUpdate = Literal["additive", "convex"]


class CellOptions(TypedDict, total=False):
    """Keyword-only options of every cell and layer; :class:`rims.RIM_LSTMCell` documents them."""

    num_input_heads: int
    input_key_size: int
    input_value_size: int | None
    input_gate: InputGate
    competition: Competition
    tie_margin: float
    num_comm_heads: int
    comm_key_size: int
    comm_value_size: int
    input_dropout: float
    comm_dropout: float
    comm_reads: CommReads
    comm_update: CommUpdate
    comm_gate_bias: float
    learned_initial_state: bool
    init_from_unit_size: bool


#: The smallest value of each size.
_SIZES = dict.fromkeys(("input_size", "num_input_heads", "input_key_size", "input_value_size"), 1)
_SIZES |= {"num_comm_heads": 0, "comm_key_size": 1, "comm_value_size": 1}
_FLAGS = ("bias", "input_slots", "learned_initial_state", "init_from_unit_size")
_WORDS: dict[str, tuple[str, ...]] = {
    "input_gate": get_args(InputGate),
    "competition": get_args(Competition),
    "comm_reads": get_args(CommReads),
    "comm_update": get_args(CommUpdate),
}


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
    number = _real(value)
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


def _real(value: object) -> float:
    """``value`` as a float; NaN if it is none."""
    # bool is a number to Python, but "dropout=True" is a mistake to nn.LSTM
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_number(where: str, name: str, value: object, low: float = -math.inf) -> float:
    """Return ``value`` as a float; ValueError unless it is a finite number of at least ``low``."""
    number = _real(value)
    if not (math.isfinite(number) and number >= low):
        rule = "a finite number" if low == -math.inf else f"a finite number of at least {low:g}"
        raise ValueError(f"{where}: {name} must be {rule}; got {value!r}.")
    return number


def check_cell_options(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a cell, counts as ints; raise unless they can work."""
    found = dict(options)
    for name, low in _SIZES.items():
        found[name] = check_count(where, name, options[name], low)
    for name in _FLAGS:
        check_flag(where, name, options[name])
    for name in ("input_dropout", "comm_dropout"):
        check_probability(where, name, options[name])
    for name, words in _WORDS.items():
        if options[name] not in words:
            *first, last = map(repr, words)
            rule = f"must be {', '.join(first)} or {last}"
            raise ValueError(f"{where}: {name} {rule}; got {options[name]!r}.")
    found["tie_margin"] = check_number(where, "tie_margin", options["tie_margin"], low=0)
    start = found["comm_gate_bias"] = check_number(
        where, "comm_gate_bias", options["comm_gate_bias"]
    )
    if start and not options["bias"]:
        raise ValueError(f"{where}: comm_gate_bias={start:g} needs bias=True; got bias=False.")
    if found["input_value_size"] % found["num_input_heads"]:
        raise ValueError(
            f"{where}: num_input_heads must divide input_value_size={found['input_value_size']}; "
            f"got {found['num_input_heads']}."
        )
    return found


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
