"""The parameters of a cell: their names, their values during a call, how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn


class Parameters(NamedTuple):
    """The parameters of a cell as tensors, read once for a call; absent ones are None.

    What stands behind an attribute may be more than a parameter: pruning, a norm, a
    parametrization, a shard that was gathered for this call. It is asked once, so that all steps of
    a sequence compute with the same numbers. Names and shapes are those of
    :class:`rims.jax.Parameters`.
    """

    weight_ih: Tensor  # (N, G d, A)
    weight_hh: Tensor  # (N, G d, d); d is P / N where projected, here and below
    bias_ih: Tensor | None  # (N, G d)
    bias_hh: Tensor | None  # (N, G d)
    weight_hr: Tensor | None  # (N, P / N, d)
    initial_h: Tensor | None  # (D,) or (P,)
    initial_c: Tensor | None  # (D,)
    query_weight: Tensor  # (N, d, M dk)
    key_weight: Tensor  # (I, M dk)
    value_weight: Tensor  # (I, A)
    comm_query_weight: Tensor | None  # (N, d, M dc)
    comm_key_weight: Tensor | None  # (N, d, M dc)
    comm_value_weight: Tensor | None  # (N, d, M dv)
    comm_output_weight: Tensor | None  # (d, M dv)
    comm_gate_weight: Tensor | None  # (d, M dv)
    comm_output_bias: Tensor | None  # (d,)
    comm_gate_bias: Tensor | None  # (d,)

    @classmethod
    def of(cls, cell: nn.Module) -> Parameters:
        """The parameters of ``cell`` as they are now."""
        return cls(*(getattr(cell, name) for name in cls._fields))

    def of_communication(self) -> list[Tensor]:
        """Weights of queries, keys, values, output and gate; none where nothing is communicated."""
        query, key, value = self.comm_query_weight, self.comm_key_weight, self.comm_value_weight
        given = query, key, value, self.comm_output_weight, self.comm_gate_weight
        return [weight for weight in given if weight is not None]

    @property
    def initial(self) -> tuple[Tensor, ...]:
        """The learned initial state, h first; empty if none is learned."""
        return tuple(start for start in (self.initial_h, self.initial_c) if start is not None)


def draw_(named: Mapping[str, Tensor], *, mechanism: int, output: int) -> None:
    r"""Draw parameters from :math:`U(-1/\sqrt{fan}, 1/\sqrt{fan})`; initial states are zero.

    Args:
        named: parameters by the names of :class:`Parameters`, or such with an ending.
        mechanism: fan of what mechanisms do on their own.
        output: fan of the output and the gate of the communication. All others have their own.
    """
    # The attentions come first, so that a seed gives the weights it always gave.
    for name in sorted(named, key=_is_of_mechanisms):
        parameter = named[name]
        if name.startswith("initial_"):
            nn.init.zeros_(parameter)
            continue
        if _is_of_mechanisms(name):
            fan = mechanism
        elif name.startswith(("comm_output_", "comm_gate_")):
            fan = output
        else:
            fan = parameter.shape[-2]
        nn.init.uniform_(parameter, -1 / math.sqrt(fan), 1 / math.sqrt(fan))


def _is_of_mechanisms(name: str) -> bool:
    """Whether a parameter belongs to the mechanisms themselves, not to the attentions."""
    return name.startswith(("weight_", "bias_", "initial_"))


#: Both attentions were modules once: former prefixes of their names, and those of today.
_FORMER = {"input_attention.": "", "communication.": "comm_"}


def from_former_names(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The ``state_dict`` of a cell, of any version, by the names of today.

    Args:
        state: what was saved; names that were never ours stay as they are.
        prefix: what the names of this cell begin with.

    Example:
        >>> list(from_former_names({"cells.0.communication.gate_bias": None}, "cells.0."))
        ['cells.0.comm_gate_bias']
    """
    found = {}
    for name, value in state.items():
        for former, now in _FORMER.items():
            renamed = prefix + now + name.removeprefix(prefix + former)
            # If both names are there, the former one stays, and loading refuses it.
            if name.startswith(prefix + former) and renamed not in state:
                name = renamed
                break
        found[name] = value
    return found
