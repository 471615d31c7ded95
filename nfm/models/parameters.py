"""Number of parameters of a model, and of its NFM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from nfm.module import NFM


class ParameterCount(NamedTuple):
    """A row of :func:`parameter_table`; all counts are of single numbers."""

    name: str
    total: int
    in_nfm: int  # attention and output blocks of the NFM layers, not the copies of the modules
    nfm_layers: int  # NFM layers, over all passes


def parameter_table(models: Mapping[str, nn.Module]) -> list[ParameterCount]:
    """Count parameters of models side by side, in the order of the mapping.

    An NFM network with its own modules in every pass also has a copy of the plain modules for each
    further pass: ``total - in_nfm`` is larger than the plain model's total by those copies.

    Args:
        models: by the name of their row, such as ``{"plain": ..., "NFM": ...}``.

    Returns:
        One row per model; parameters that are shared count once.

    Example:
        >>> parameter_table({"linear": nn.Linear(3, 5)})
        [ParameterCount(name='linear', total=20, in_nfm=0, nfm_layers=0)]
    """
    return [_count(name, model) for name, model in models.items()]


def _count(name: str, model: nn.Module) -> ParameterCount:
    layers = [module for module in model.modules() if isinstance(module, NFM)]
    # A set of the parameters themselves: layers shared by passes must not count twice.
    in_nfm = {parameter for layer in layers for parameter in layer.parameters()}
    return ParameterCount(
        name,
        total=sum(parameter.numel() for parameter in model.parameters()),
        in_nfm=sum(parameter.numel() for parameter in in_nfm),
        nfm_layers=len(layers),
    )
