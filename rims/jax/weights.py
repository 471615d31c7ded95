"""Weights to and from the torch layers, and from the authors' arrays, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from flax import nnx
from jax import Array
from torch import Tensor

from rims.base_layer import RIMLayer as TorchLayer
from rims.cells import RIM_LSTMCell
from rims.jax.cells import RIMCellBase, RIMGRUCell, RIMLSTMCell
from rims.jax.layers import RIM_GRU, RIM_LSTM, RIMLayer
from rims.jax.parameters import NAMES, CellSpec, Parameters, of_arrays, shapes
from rims.parameters import from_former_names
from rims.step import RIMCell as TorchCell

#: A module of this package that has weights.
Module = RIMCellBase | RIMLayer

_COMM = "communication."
_READ = "input_attention."
#: The authors' names of our parameters.
_AUTHORS = {
    **{f"{_READ}{part}.weight": f"{part}_weight" for part in ("query", "key", "value")},
    **{f"{_COMM}{part}.weight": f"comm_{part}_weight" for part in ("query", "key", "value")},
    **{f"{_COMM}{part}.weight": f"comm_{part}_weight" for part in ("output", "gate")},
    **{f"{_COMM}{part}.bias": f"comm_{part}_bias" for part in ("output", "gate")},
    **{f"cell.{name}": name for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
}


def from_torch(source: TorchCell | TorchLayer | Mapping[str, Tensor], into: Any = None) -> Any:
    """A JAX module with the weights of a torch one, bit for bit.

    The numbers a module computes are then those of the torch module (arXiv:1909.10893,
    ``docs/notation.md``), to the rounding of the type.

    Args:
        source: a :class:`rims.RIM_LSTM`, ``RIM_GRU``, ``RIM_LSTMCell`` or ``RIM_GRUCell``, or the
            ``state_dict`` of one.
        into: the module of :mod:`rims.jax` to fill; needed for a ``state_dict``, which does not
            tell all options. Default: a new one with the options of ``source``.

    Returns:
        ``into``, or the new module.

    Raises:
        ValueError: if names, shapes or types do not fit; nothing was changed then.

    Example:
        >>> import rims
        >>> layer = from_torch(rims.RIM_GRU(5, 12, 4, 2))
        >>> layer(jnp.ones((7, 3, 5)))[0].shape
        (7, 3, 12)
    """
    if into is None:
        if isinstance(source, Mapping):
            raise ValueError("from_torch: a state_dict needs into=, the module to fill.")
        into = _empty_like(source)
    given = source if isinstance(source, Mapping) else source.state_dict()
    cells = _cells(into)
    for prefix in cells:
        given = from_former_names(given, prefix)
    arrays = {name: _to_array(name, tensor) for name, tensor in given.items()}
    names = {prefix + name for prefix, cell in cells.items() for name in shapes(cell.spec)}
    for name in sorted(arrays.keys() - names):
        raise ValueError(f"from_torch: unknown entry {name}.")
    loaded = [
        of_arrays("from_torch", cell.spec, _of_cell(arrays, prefix))
        for prefix, cell in cells.items()
    ]
    for cell, parameters in zip(cells.values(), loaded, strict=True):
        cell.load(parameters)
    return into


def to_torch(module: Module | Parameters) -> dict[str, Tensor]:
    """The ``state_dict`` of the torch module with the same weights, bit for bit.

    It loads strictly into the torch cell or layer of the same sizes and options, in whose terms
    it computes the same (arXiv:1909.10893, ``docs/notation.md``).

    Args:
        module: a cell, a layer, or the parameters of a cell.

    Returns:
        Tensors on the CPU by the names of the torch module, memory of their own.

    Example:
        >>> import rims
        >>> cell = RIMGRUCell(5, 12, 4, 2, rngs=nnx.Rngs(0))
        >>> rims.RIM_GRUCell(5, 12, 4, 2).load_state_dict(to_torch(cell))
        <All keys matched successfully>
    """
    if isinstance(module, Parameters):
        return {name: _to_tensor(array) for name, array in module.arrays().items()}
    return {
        prefix + name: tensor
        for prefix, cell in _cells(module).items()
        for name, tensor in to_torch(cell.parameters).items()
    }


def from_authors(spec: CellSpec, arrays: Mapping[str, Any]) -> Parameters:
    """Parameters from plain arrays of the authors' implementation, by descriptive names.

    Names are those of :func:`rims.authors.load_weights`:
    ``input_attention.{query,key,value}.weight``, ``cell.{weight,bias}_{ih,hh}`` (shaped
    [mechanism, gate, unit, ...]), ``communication.{query,key,value}.weight`` and
    ``communication.{output,gate}.{weight,bias}`` (arXiv:1909.10893).

    Args:
        spec: sizes and options of the cell they are for.
        arrays: name to array; exactly the names above.

    Returns:
        :class:`Parameters`, in the type of the arrays where JAX has it.

    Raises:
        ValueError: naming the first entry that is missing, unknown or of the wrong shape.
    """
    found = {}
    for name, array in arrays.items():
        if name not in _AUTHORS:
            raise ValueError(f"from_authors: unknown entry {name}.")
        value = jnp.asarray(array)
        if name.startswith("cell."):  # (N, G, d, ...) -> (N, G d, ...)
            value = value.reshape(len(value), -1, *value.shape[3:])
        found[_AUTHORS[name]] = value
    return of_arrays("from_authors", spec, found)


def _cells(module: Any) -> dict[str, RIMCellBase]:
    """Cells by the prefix of their names in torch's state_dict."""
    if isinstance(module, RIMCellBase):
        return {"": module}
    if isinstance(module, RIMLayer):
        return {f"cells.{i}.": cell for i, cell in enumerate(module.cells)}
    raise TypeError(f"expected a cell or layer of rims.jax; got {type(module).__name__}.")


def _of_cell(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    ours = {prefix + name: name for name in NAMES}
    return {ours[name]: array for name, array in arrays.items() if name in ours}


def _empty_like(source: TorchCell | TorchLayer) -> Module:
    """A module of the same sizes and options."""
    rngs = nnx.Rngs(0)
    cells = [source] if isinstance(source, TorchCell) else source.rim_cells
    first = cells[0]
    dtype = _to_array("weight_hh", first.weight_hh.detach()[:0]).dtype
    options = {n: v for n, v in first._options().items() if n not in ("bias", "input_slots")}
    if any(cell._options()["input_value_size"] is not None for cell in cells):
        # A number given for all layers can be the default of one of them.
        options["input_value_size"] = first.weight_ih.shape[-1]
    is_lstm = isinstance(first, RIM_LSTMCell)
    given: dict[str, Any] = {**options, "param_dtype": dtype, "rngs": rngs}
    given |= {"bias": source.bias, "input_slots": source.input_slots}
    if isinstance(source, TorchCell):
        sizes = (source.input_size, source.hidden_size, source.num_rims, source.k)
        return (RIMLSTMCell if is_lstm else RIMGRUCell)(*sizes, **given)
    names = ("num_layers", "batch_first", "dropout", "bidirectional", "use_inactive")
    given |= {name: getattr(source, name) for name in (*names, "blocked_grad")}
    layer_sizes = (source.input_size, source.hidden_size, source.num_rims, source.k)
    return (RIM_LSTM if is_lstm else RIM_GRU)(*layer_sizes, **given)


def _to_array(name: str, tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has none of its own
        array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        array = tensor.numpy()
    found = jnp.array(array)
    if found.dtype != array.dtype:
        raise ValueError(
            f"from_torch: {name} is {array.dtype}, which JAX would make {found.dtype}; "
            "use jax.enable_x64() or convert the torch module, module.float()."
        )
    return found


def _to_tensor(array: Array) -> Tensor:
    host = np.array(array)  # a copy
    if host.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(host.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(host)
