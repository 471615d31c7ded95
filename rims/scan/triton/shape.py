"""Sizes known when a kernel is compiled, and the decorators that compile it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import triton


@dataclass(frozen=True)
class Shape:
    """Sizes known at compile time. The padded ones are powers of two."""

    # Regions of scratch, each (N, rows, width). Both directions:
    H: ClassVar = 0  # the state before the step
    COMM_INPUT: ClassVar = 1  # what mechanisms read of each other
    # forward:
    C: ClassVar = 2  # the LSTM's c
    CAND: ClassVar = 3  # the candidates
    # backward:
    GRAD_H: ClassVar = 2  # gradients going back in time
    GRAD_C: ClassVar = 3
    FRESH_H: ClassVar = 4  # gradients of what resets put in place of the state
    FRESH_C: ClassVar = 5

    num_rims: int  # N
    unit_size: int  # d
    num_gates: int  # G
    num_heads: int  # M
    key_size: int  # dc
    value_size: int  # dv
    k: int
    reads_state: bool
    rows: int  # samples of a program
    cols: int  # columns of a state or of a gate computed at once
    inner: int  # terms of a sum multiplied at once; divides cols and all_keys and all_values
    rims: int  # N padded
    heads: int  # M padded
    keys: int  # dc padded
    values: int  # dv padded
    stride: int  # d of packed weights, whole 16 bytes
    use_dot: bool  # tensor cores or tl.dot's own loops; else plain sums, for double precision
    precision: str  # of tl.dot in float32: "tf32" or "ieee"
    acc: Any  # the Triton type of all arithmetic

    @property
    def is_lstm(self) -> bool:
        """An LSTM has four gates, a GRU three."""
        return self.num_gates == 4

    @property
    def chunks(self) -> int:
        """Tiles of ``cols`` that cover d."""
        return -(-self.unit_size // self.cols)

    @property
    def width(self) -> int:
        """Columns of a mechanism in scratch."""
        return self.chunks * self.cols

    @property
    def tile(self) -> int:
        """Numbers of a region of scratch."""
        return self.num_rims * self.rows * self.width

    @property
    def all_keys(self) -> int:
        """M dc, every head padded."""
        return self.heads * self.keys

    @property
    def all_values(self) -> int:
        """M dv, every head padded."""
        return self.heads * self.values

    @property
    def packed(self) -> int:
        """Queries, keys and values of a mechanism side by side, padded."""
        return 2 * self.all_keys + self.all_values

    @property
    def qkv(self) -> int:
        """Numbers of the scratch for queries, keys and values."""
        return self.num_rims * self.rows * self.packed

    @property
    def read(self) -> int:
        """Numbers of the scratch for what mechanisms read."""
        return self.num_rims * self.rows * self.all_values

    @property
    def pairs(self) -> int:
        """Numbers of the scratch for one number per head, reader and source."""
        return self.num_rims * self.rows * self.heads * self.rims

    @property
    def forward_words(self) -> int:
        """Numbers of scratch per program of :func:`forward_kernel`."""
        return 4 * self.tile + self.qkv + self.read

    @property
    def backward_words(self) -> int:
        """Numbers of scratch per program of :func:`backward_kernel`."""
        # regions; gates (4) and gradients of output and gate (2); QKV, read and their gradients
        return 12 * self.tile + 2 * self.qkv + 2 * self.read + 2 * self.pairs


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit``, with a type. Parameters of what it decorates are tensors or pointers."""
    return triton.jit(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that is launched.

    Ranges of steps begin anywhere and may have any length; none of that is worth a compilation.
    """
    names = ["query_side", "gate_side", "grad_output", "reset", "valid", "before_h", "before_c"]
    names += ["done_h", "done_c", "done_active", "out_h", "out_c", "out_active"]
    known = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(
        function,
        do_not_specialize=["steps", "batch"],
        do_not_specialize_on_alignment=[name for name in names if name in known],
    )
