"""RIM cells and layers for JAX, number for number those of :mod:`rims` (arXiv:1909.10893).

Pure functions over a pytree of parameters, and Flax NNX modules around them. Needs the extra
``jax``; nothing else of ``rims`` imports this package.
"""

from importlib import import_module as _import_module

try:
    for _name in ("jax", "flax"):
        _import_module(_name)
except ModuleNotFoundError as _error:
    # Without its cause: what is missing and how to get it fit into one line.
    raise ImportError(
        f"rims.jax needs {_error.name}, which is not installed: pip install 'rims-toolkit[jax]'"
    ) from None

from rims.jax.cells import RIMGRUCell as RIMGRUCell
from rims.jax.cells import RIMLSTMCell as RIMLSTMCell
from rims.jax.layers import RIM_GRU as RIM_GRU
from rims.jax.layers import RIM_LSTM as RIM_LSTM
from rims.jax.parameters import CellSpec as CellSpec
from rims.jax.parameters import Parameters as Parameters
from rims.jax.parameters import init as init
from rims.jax.sequence import ScanOutput as ScanOutput
from rims.jax.sequence import scan as scan
from rims.jax.step import CellStep as CellStep
from rims.jax.step import initial_state as initial_state
from rims.jax.step import step as step
from rims.jax.weights import from_authors as from_authors
from rims.jax.weights import from_torch as from_torch
from rims.jax.weights import to_torch as to_torch

__all__ = [
    "RIM_GRU",
    "RIM_LSTM",
    "CellSpec",
    "CellStep",
    "Parameters",
    "RIMGRUCell",
    "RIMLSTMCell",
    "ScanOutput",
    "from_authors",
    "from_torch",
    "init",
    "initial_state",
    "scan",
    "step",
    "to_torch",
]
