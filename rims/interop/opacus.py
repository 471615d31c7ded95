"""Differentially private training: opacus refuses RIM layers up front, as it refuses nn.LSTM."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def refuse_opacus(cell_type: type[nn.Module]) -> None:
    """Make opacus, if it has been imported, refuse models with cells of this type.

    It computes the gradients of single samples module by module, from one input and one output,
    batch first. A recurrent layer also passes states on. Without this, opacus would accept it and
    fail during training.
    """
    validators = sys.modules.get("opacus.validators")
    if validators is not None:
        validators.register_module_validator(cell_type)(_refusal)


def _refusal(cell: nn.Module) -> list[Exception]:
    errors: Any = sys.modules["opacus.validators.errors"]
    return [
        errors.UnsupportedModuleError(
            f"{type(cell).__name__}: opacus computes no per-sample gradients of RIM layers. Use "
            "torch.func (vmap over grad and functional_call), which does, or opacus' DPLSTM."
        )
    ]
