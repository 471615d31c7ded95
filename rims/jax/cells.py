"""RIMLSTMCell and RIMGRUCell: cells for ``nnx.RNN``, by the conventions of Flax NNX."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import recurrent
from jax import Array

from rims.checks import CellOptions
from rims.jax.parameters import NAMES, CellSpec, Kind, Parameters, init
from rims.jax.step import State, initial_state, step


class RIMCellBase(recurrent.RNNCellBase):
    """Base class of both cells; options are documented there."""

    kind: ClassVar[Kind]

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        num_rims: int,
        k: int,
        *,
        bias: bool = True,
        proj_size: int = 0,
        input_slots: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **options: Unpack[CellOptions],
    ) -> None:
        spec = CellSpec(
            kind=self.kind,
            input_size=in_features,
            hidden_size=hidden_features,
            num_rims=num_rims,
            k=k,
            bias=bias,
            proj_size=proj_size,
            input_slots=input_slots,
            **options,
        )
        self.spec = spec
        self.dtype = dtype
        self.deterministic = False
        self.rngs = rngs.dropout.fork() if spec.has_dropout else nnx.data(None)
        for name, array in init(rngs.params(), spec, param_dtype).arrays().items():
            setattr(self, name, nnx.Param(array))

    @property
    def parameters(self) -> Parameters:
        """The parameters as a plain pytree, for :func:`rims.jax.step` and :func:`rims.jax.scan`."""
        arrays = {name: getattr(self, name)[...] for name in NAMES if hasattr(self, name)}
        return Parameters(spec=self.spec, **arrays)

    def load(self, parameters: Parameters) -> None:
        """Take the values of ``parameters``, which must be of the same :class:`CellSpec`."""
        if parameters.spec != self.spec:
            raise ValueError(f"load: expected {self.spec}; got {parameters.spec}.")
        for name, array in parameters.arrays().items():
            getattr(self, name).set_value(array)

    @property
    def num_feature_axes(self) -> int:
        """Axes of an input that are no batch: 1, with slots 2."""
        return 1 + self.spec.input_slots

    def computed(self) -> Parameters:
        """The parameters in the type the cell computes in, ``dtype`` if it was given."""
        return self.parameters if self.dtype is None else self.parameters.astype(self.dtype)

    def dropout_key(self) -> Array | None:
        """A new random key where the cell drops something, else None."""
        if self.deterministic or self.rngs is None:
            return None
        key: Array = self.rngs()
        return key

    def _start(self, input_shape: tuple[int, ...], rngs: Any, carry_init: Any) -> State:
        batch = input_shape[: -self.num_feature_axes]
        if carry_init is None:
            return initial_state(self.computed(), batch)
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        if stream is None:
            raise ValueError(f"{type(self).__name__}: carry_init needs rngs.")
        dtype = self.computed().weight_hh.dtype
        return tuple(carry_init(stream(), (*batch, s), dtype) for s in self.spec.state_sizes)

    def _step(self, state: State, inputs: Array) -> State:
        if self.dtype is not None:
            state, inputs = tuple(s.astype(self.dtype) for s in state), inputs.astype(self.dtype)
        return step(self.computed(), inputs, state, key=self.dropout_key()).state


class RIMLSTMCell(RIMCellBase):
    r"""N LSTM mechanisms of which k are active at a step, as a cell of Flax NNX.

    Recurrent Independent Mechanisms, arXiv:1909.10893; the equations are at
    :class:`rims.RIM_LSTMCell`, whose numbers these are. The mechanisms with the largest
    :math:`l_m = (h_m W^q_m) \cdot (x W^k) / \sqrt{d_k}` become
    :math:`h'_m = \tilde h_m + update_m(\tilde h_1, \dots, \tilde h_N)`, the others stay.

    Args:
        in_features: I, features of the input.
        hidden_features: D, features of the whole state; N divides it.
        num_rims: N, number of mechanisms.
        k: active mechanisms per step, ``1 <= k <= num_rims``.
        bias: whether gates and communication have biases. Default true.
        proj_size: P, total size of a projected h; 0 (default) projects nothing.
        input_slots: an input is S elements ``(..., S, I)``. Default false.
        dtype: what is computed in. Default: what input, state and parameters have in common.
        param_dtype: of the parameters. Default float32.
        rngs: streams ``params``, and ``dropout`` where the cell drops something.
        options: the other keyword-only options of :class:`rims.RIM_LSTMCell`. ``train()`` and
            ``eval()`` switch dropout on and off.

    Shape:
        input ``(..., I)``; carry ``(c, h)``, as Flax has it: ``(..., D)`` and ``(..., D or P)``.

    Returns:
        ``carry, h``.

    Raises:
        ValueError, TypeError: for sizes and options that do not fit each other.

    Example:
        >>> cell = RIMLSTMCell(10, 24, 6, 4, rngs=nnx.Rngs(0))
        >>> nnx.RNN(cell)(jnp.ones((3, 7, 10))).shape
        (3, 7, 24)
    """

    kind = "lstm"

    def __call__(
        self, carry: tuple[Array, Array], inputs: Array
    ) -> tuple[tuple[Array, Array], Array]:
        """The new carry ``(c, h)`` and the output h."""
        c, h = carry
        h, c = self._step((h, c), inputs)
        return (c, h), h

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> tuple[Array, Array]:
        """``(c, h)`` for inputs of a shape: zeros, what is learned or what ``carry_init`` draws."""
        h, c = self._start(input_shape, rngs, carry_init)
        return c, h


class RIMGRUCell(RIMCellBase):
    r"""N GRU mechanisms of which k are active at a step, as a cell of Flax NNX.

    As :class:`RIMLSTMCell`, each mechanism updated as by :class:`rims.RIM_GRUCell`
    (arXiv:1909.10893): :math:`\tilde h_m = (1 - z)\, n + z\, h_m`. No ``proj_size``.

    Args:
        in_features: I, features of the input.
        hidden_features: D, features of the whole state; N divides it.
        num_rims: N, number of mechanisms.
        k: active mechanisms per step, ``1 <= k <= num_rims``.
        bias: whether gates and communication have biases. Default true.
        input_slots: an input is S elements ``(..., S, I)``. Default false.
        dtype: what is computed in. Default: what input, state and parameters have in common.
        param_dtype: of the parameters. Default float32.
        rngs: streams ``params``, and ``dropout`` where the cell drops something.
        options: the other keyword-only options of :class:`rims.RIM_GRUCell`.

    Shape:
        input ``(..., I)``; carry h ``(..., D)``.

    Returns:
        ``h, h``.

    Raises:
        ValueError, TypeError: for sizes and options that do not fit each other.

    Example:
        >>> cell = RIMGRUCell(10, 24, 6, 4, rngs=nnx.Rngs(0))
        >>> nnx.RNN(cell)(jnp.ones((3, 7, 10))).shape
        (3, 7, 24)
    """

    kind = "gru"

    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """The new carry, which is the output."""
        (h,) = self._step((carry,), inputs)
        return h, h

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> Array:
        """h for inputs of a shape: zeros, what is learned, or what ``carry_init`` draws."""
        (h,) = self._start(input_shape, rngs, carry_init)
        return h
