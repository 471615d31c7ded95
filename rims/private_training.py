"""Differentially private training: opacus refuses RIM layers up front, as it refuses nn.LSTM."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def tell_opacus(cell_type: type[nn.Module]) -> None:
    """Have opacus, where it has been imported, refuse models with cells of this type.

    It computes gradients of single samples module by module from one input and one output, batch
    first. A recurrent layer passes states on as well; without this it would be accepted, and fail
    in training.
    """
    validators = sys.modules.get("opacus.validators")
    if validators is not None:
        validators.register_module_validator(cell_type)(_refuse)


def _refuse(cell: nn.Module) -> list[Exception]:
    errors: Any = sys.modules["opacus.validators.errors"]
    return [
        errors.UnsupportedModuleError(
            f"{type(cell).__name__}: opacus computes no per-sample gradients of RIM layers. Use "
            "torch.func (vmap over grad and functional_call), which does, or opacus' DPLSTM."
        )
    ]
