"""The recurrent part of a sequence in Triton: one kernel forward and one back for a range of steps.

Triton itself is imported when a sequence is first computed with it: it is not installed everywhere.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Carry, Hoisted, Sequence
from rims.scan.torch.products import LoopGradients, ProductRecurrence

if TYPE_CHECKING:
    from rims.scan.triton.shape import Shape

_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

#: Older compilers know no sizes bundled in one argument.
_OLDEST = (3, 4)

#: Limits of what a program keeps on chip: one number per sample, head and mechanism; tiles of all
#: heads together; and, looser, a mechanism's state, of which it takes 64 columns at a time.
_MAX_RIMS = 64
_MAX_HEADS_SIZE = 128
_MAX_UNIT_SIZE = 1024

_NUM_WARPS = 8


def why_not(device: torch.device, dtype: torch.dtype, w: Weights) -> str | None:
    """Why :class:`TritonRecurrence` cannot run these weights; None if it can."""
    return _no_triton() or _no_device(device) or _not_fitting(dtype, w)


def _no_triton() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    import triton

    major, minor = triton.__version__.split(".")[:2]
    if (int(major), int(minor)) < _OLDEST:
        return f"triton {triton.__version__} is too old"
    return None


def _no_device(device: torch.device) -> str | None:
    if device.type != "cuda":
        # Triton reads this when it is imported: kernels then run in Python, on any device.
        is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if is_interpreted else f"triton does not run on {device.type}"
    if torch.version.hip is not None:
        return "triton is untested on AMD devices"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the device is older than compute capability 8.0"
    return None


def _not_fitting(dtype: torch.dtype, w: Weights) -> str | None:
    if dtype not in _TYPES:
        return f"no triton kernel for {dtype}"
    if w.num_rims > _MAX_RIMS:
        return f"more than {_MAX_RIMS} mechanisms"
    if w.unit_size > _MAX_UNIT_SIZE:
        return f"mechanisms of more than {_MAX_UNIT_SIZE} features"
    if not w.comm_key.shape[2]:
        return "num_comm_heads"
    if max(w.comm_key.shape[2], w.comm_value.shape[2]) > _MAX_HEADS_SIZE:
        return f"communication keys or values of more than {_MAX_HEADS_SIZE} features"
    return None


class TritonRecurrence(ProductRecurrence):
    """Triton: one kernel for a range of steps, and one for its gradient.

    Arithmetic and, within a range, the state are in float32 for every type but float64; what is
    stored of a step has the type of the input.
    """

    def __init__(self, w: Weights, rules: Rules, states: States, flags: Flags) -> None:
        # A learned initial state comes expanded over the batch, flags as bool: kernels want neither
        rest = (None if s is None else s.contiguous() for s in states[1:])
        whole = States(states.h.contiguous(), *rest)
        bytes_ = (None if f is None else f.contiguous().view(torch.uint8) for f in flags)
        super().__init__(w, rules, whole, Flags(*bytes_))
        self._shape = _shape(w, rules)
        self._packed = _pack(w, self._shape)
        self._packed_back: _PackedBack | None = None

    def forward(self, first: int, inputs: Hoisted, out: Sequence) -> None:
        """See :meth:`Recurrence.forward`."""
        from rims.scan.triton.forward import forward_kernel

        steps, batch, _ = inputs.query_side.shape
        if not steps * batch:
            return
        part = slice(first, first + steps)
        before = self._before(first, out)
        self._launch(
            forward_kernel, self._shape.forward_words, batch,
            *(t.contiguous() for t in inputs), *before, self.states.fresh_h, self.states.fresh_c,
            _part(self.flags.reset, part), _part(self.flags.valid, part), *self._packed,
            out.h[part], _part(out.c, part), out.active[part].view(torch.uint8), steps=steps,
        )  # fmt: skip

    def retreat(
        self,
        first: int,
        inputs: Hoisted,
        did: Sequence,
        grad_output: Tensor,
        carry: Carry,
        out: LoopGradients,
    ) -> None:
        """See :meth:`ProductRecurrence.retreat`."""
        from rims.scan.triton.backward import backward_kernel

        steps, batch, _ = inputs.query_side.shape
        if not steps * batch:
            return
        if self._packed_back is None:
            self._packed_back = _pack_back(self.w, self._shape)
        s, part = self._shape, slice(first, first + steps)
        programs = -(-batch // s.rows)
        bias_sum = self._scratch((programs, s.num_rims, s.num_gates, s.width)).zero_()
        changed = [None if t is None else t.contiguous() for t in carry]
        self._launch(
            backward_kernel, s.backward_words, batch,
            *(t.contiguous() for t in inputs), *self._before(first, did),
            self.states.fresh_h, self.states.fresh_c, _part(self.flags.reset, part),
            did.h[part], _part(did.c, part), did.active[part].view(torch.uint8),
            grad_output.contiguous(), *self._packed, *self._packed_back, *changed,
            *out[:-1], bias_sum, steps=steps,
        )  # fmt: skip
        for tensor, new in zip(carry, changed, strict=True):
            if tensor is not None and new is not None and new is not tensor:
                tensor.copy_(new)
        out.bias_ih.add_(bias_sum.sum(0)[..., : s.unit_size].reshape(out.bias_ih.shape))

    def _before(self, first: int, did: Sequence) -> tuple[Tensor, Tensor | None]:
        """The state before a range, resets not yet made."""
        if not first:
            return self.states.h, self.states.c
        return did.h[first - 1], None if did.c is None else did.c[first - 1]

    def _scratch(self, shape: tuple[int, ...]) -> Tensor:
        dtype = torch.float64 if self.w.hh.dtype == torch.float64 else torch.float32
        return torch.empty(shape, dtype=dtype, device=self.w.hh.device)

    def _launch(
        self, kernel: Any, words: int, batch: int, *arguments: Tensor | None, steps: int
    ) -> None:
        s = self._shape
        programs = -(-batch // s.rows)
        scratch = self._scratch((programs, words))
        with torch.cuda.device(scratch.get_device()):
            kernel[(programs,)](
                *arguments, scratch, steps, batch, s, num_warps=_NUM_WARPS, enable_fp_fusion=True
            )


class _Packed(NamedTuple):
    """Weights with the terms of a sum in rows and what is computed in columns, padded."""

    hh: Tensor  # (N, d, G, stride)
    bias_x: Tensor  # (N, 4, width)
    bias_h: Tensor
    comm: Tensor  # (N, d, packed): queries, keys, values
    output: Tensor  # (all_values, 2, stride): output, gate
    output_bias: Tensor  # (2, width)


class _PackedBack(NamedTuple):
    """Weights packed for the products of the gradient."""

    hh: Tensor  # (N, G, width, stride)
    comm: Tensor  # (N, packed, stride)
    output: Tensor  # (2, width, all_values)


def _shape(w: Weights, rules: Rules) -> Shape:
    import triton.language as tl

    from rims.scan.triton.shape import Shape

    # Double precision is for tests. tl.dot does not take it everywhere; sums need small tiles.
    use_dot = w.hh.dtype != torch.float64
    key_size, value_size = (p.shape[2] // rules.num_heads for p in (w.comm_key, w.comm_value))
    heads = _power(rules.num_heads)
    keys, values = (max(_power(size), -(-16 // heads)) for size in (key_size, value_size))
    cols = min(64 if use_dot else 32, max(16, _power(w.unit_size)))
    sizes = {
        "num_rims": w.num_rims,
        "unit_size": w.unit_size,
        "num_gates": w.num_gates,
        "num_heads": rules.num_heads,
        "key_size": key_size,
        "value_size": value_size,
        "k": rules.k,
    }
    padded = {
        "rows": 16 if use_dot else 4,  # 16 is the least that every tl.dot takes, also for the rest
        "cols": cols,
        "inner": min(32 if use_dot else 16, cols, heads * keys, heads * values),
        "rims": _power(w.num_rims),
        "heads": heads,
        "keys": keys,
        "values": values,
        "stride": _round_up(w.unit_size, 16 // w.hh.dtype.itemsize),
    }
    return Shape(
        **sizes,
        **padded,
        reads_state=rules.reads_state,
        use_dot=use_dot,
        precision="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        acc=tl.float32 if use_dot else tl.float64,
    )


def _pack(w: Weights, s: Shape) -> _Packed:
    hh = w.hh.view(s.num_rims, s.num_gates, s.unit_size, s.unit_size)
    comm = _padded_comm(w, s)  # (N, d, packed)
    output = torch.stack([_padded_heads(p, s, s.values) for p in (w.output, w.gate)])
    output_biases = [_or_zeros(b, w.output[:, 0]) for b in (w.output_bias, w.gate_bias)]
    dtype = torch.float64 if w.hh.dtype == torch.float64 else torch.float32
    bias_x, bias_h = (
        _pad_gates(_or_zeros(bias, w.hh[..., 0]), s).to(dtype) for bias in (w.bias_ih, w.bias_hh)
    )
    return _Packed(
        _pad(hh.permute(0, 3, 1, 2), s.stride),
        bias_x,
        bias_h,
        comm,
        _pad(output.permute(2, 0, 1), s.stride),
        _pad(torch.stack(output_biases), s.width).to(dtype),
    )


def _pack_back(w: Weights, s: Shape) -> _PackedBack:
    hh = w.hh.view(s.num_rims, s.num_gates, s.unit_size, s.unit_size)
    output = torch.stack([_padded_heads(p, s, s.values) for p in (w.output, w.gate)])
    return _PackedBack(
        F.pad(hh, (0, s.stride - s.unit_size, 0, s.width - s.unit_size)).contiguous(),
        _pad(_padded_comm(w, s).mT, s.stride),
        F.pad(output, (0, 0, 0, s.width - s.unit_size)).contiguous(),
    )


def _padded_comm(w: Weights, s: Shape) -> Tensor:
    """Queries', keys' and values' weights side by side, every head padded: (N, d, packed)."""
    parts = ((w.comm_query, s.keys), (w.comm_key, s.keys), (w.comm_value, s.values))
    return torch.cat([_padded_heads(weight, s, size) for weight, size in parts], dim=-1)


def _padded_heads(weight: Tensor, s: Shape, size: int) -> Tensor:
    """(..., M d) -> (..., heads ``size``), every head padded."""
    split = weight.reshape(*weight.shape[:-1], s.num_heads, -1)
    return F.pad(split, (0, size - split.shape[-1], 0, s.heads - s.num_heads)).flatten(-2)


def _pad_gates(bias: Tensor, s: Shape) -> Tensor:
    """(N, G d) -> (N, 4, width)."""
    split = bias.reshape(s.num_rims, s.num_gates, s.unit_size)
    return F.pad(split, (0, s.width - s.unit_size, 0, 4 - s.num_gates))


def _pad(weight: Tensor, size: int) -> Tensor:
    return F.pad(weight, (0, size - weight.shape[-1])).contiguous()


def _or_zeros(bias: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if bias is None else bias


def _part(sequence: Tensor | None, part: slice) -> Tensor | None:
    return None if sequence is None else sequence[part]


def _power(size: int) -> int:
    """The power of two from ``size`` on."""
    return 1 << (size - 1).bit_length()


def _round_up(size: int, to: int) -> int:
    return -(-size // to) * to
