"""Layers and cells in graphs of torch.fx: one node each, like torch's own recurrent layers."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy, Tracer


def as_leaf(module: nn.Module, *args: Any, **named: Any) -> Any:
    """A call of ``module`` as one node of the graph being traced; None if none is.

    ``torch.fx`` takes modules of ``torch.nn`` as leaves of a graph and traces through all others.
    A loop over an unknown number of steps cannot be traced through.
    """
    proxy = _first_proxy((*args, *named.values()))
    if proxy is None or not isinstance(proxy.tracer, Tracer):
        return None
    path = proxy.tracer.path_of_module(module)
    if not path:  # this module alone is traced; torch's recurrent layers have no graph then either
        return None
    given = {name: value for name, value in named.items() if value is not None}
    return proxy.tracer.create_proxy("call_module", path, args, given)


def _first_proxy(values: tuple[Any, ...]) -> Proxy | None:
    for value in values:
        found = _first_proxy(value) if isinstance(value, tuple) else value
        if isinstance(found, Proxy):
            return found
    return None
