"""The recurrent part of a sequence by the native kernels."""

from __future__ import annotations

import functools
import struct
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rims.native import threads
from rims.native.simd import VECTOR_BYTES
from rims.scan.native import build
from rims.scan.native import table as e
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Carry, Hoisted, LoopGradients, Recurrence, Sequence

#: Samples of a block at most: a weight fetched from the second-level cache serves so many, and
#: what they leave within a step still fits there beside all weights.
MAX_BLOCK_ROWS = 32


class NativeRecurrence(Recurrence):
    """In machine code for the CPU, float32 and float64; threads as PyTorch is set to use."""

    packs_active = True

    def __init__(self, w: Weights, rules: Rules, states: States, flags: Flags) -> None:
        super().__init__(w, rules, States(*map(_dense, states)), Flags(*map(_dense, flags)))  # type: ignore[arg-type]
        self.double = w.hh.dtype == torch.float64
        self.num_threads = torch.get_num_threads()
        layout = _lay_out(
            states.h.shape[0], w.hh.shape, w.comm_key.shape[2], w.comm_value.shape[2],
            rules, w.hh.element_size(), self.num_threads,
        )  # fmt: skip
        self.sizes = layout.sizes
        self._held: list[Tensor] = []  # what addresses in the table point to
        self._entries = list(layout.entries)
        self._table = np.empty((1 + self.sizes["blocks"]) * e.SIZE, dtype=np.int64)
        self._address = self._table.ctypes.data
        self._arena = torch.empty(layout.arena_bytes, dtype=torch.uint8)
        start = _round_up(self._arena.data_ptr(), 64)
        for index, offset in layout.scratch:
            self._entries[index] = start + offset
        self._set(self._given())
        self._hold(**self._packed())
        self._is_packed_back = False

    def forward(self, first: int, inputs: Hoisted, out: Sequence) -> None:
        """See :meth:`Recurrence.forward`."""
        self._set(self._range(first, inputs, out))
        self._run("forward")

    def backward(
        self,
        first: int,
        inputs: Hoisted,
        did: Sequence,
        grad_output: Tensor,
        carry: Carry,
        out: LoopGradients,
    ) -> None:
        """See :meth:`Recurrence.backward`."""
        if not self._is_packed_back:
            self._hold(**self._packed_back())
            self._is_packed_back = True
        grad_output = grad_output.contiguous()
        tensors = {
            "grad_h": grad_output,
            "carry_h": carry.h, "carry_c": carry.c,
            "carry_fresh_h": carry.fresh_h, "carry_fresh_c": carry.fresh_c,
            "d_query_side": out.query_side, "d_gate_side": out.gate_side,
            "d_state_gates": out.state_gates, "d_qkv": out.qkv,
            "d_output_gate": out.output_gate,
            "h_prev": out.h_prev, "spoken": out.spoken, "read": out.read,
        }  # fmt: skip
        self._set(self._range(first, inputs, did) | {n: _address(t) for n, t in tensors.items()})
        self._run("back")
        out.bias_ih.add_(self._bias_sums())

    def _run(self, name: str) -> None:
        self._table[: e.SIZE] = self._entries
        count = min(self.num_threads, self.sizes["blocks"])
        threads.run(build.address(name, self.double), self._address, count)

    def _set(self, entries: dict[str, int]) -> None:
        for name, value in entries.items():
            self._entries[e.INDEX[name]] = value

    def _hold(self, **tensors: Tensor) -> None:
        """Put the addresses of new tensors into the table, and keep them alive."""
        self._held += tensors.values()
        self._set({name: tensor.data_ptr() for name, tensor in tensors.items()})

    def _given(self) -> dict[str, int]:
        tensors = {
            "reset": self.flags.reset, "valid": self.flags.valid,
            "h0": self.states.h, "c0": self.states.c,
            "fresh_h": self.states.fresh_h, "fresh_c": self.states.fresh_c,
        }  # fmt: skip
        addresses = {name: _address(tensor) for name, tensor in tensors.items()}
        return addresses | {
            "has_reset": int(self.flags.reset is not None),
            "has_valid": int(self.flags.valid is not None),
            "has_fresh": int(self.states.fresh_h is not None),
        }

    def _packed(self) -> dict[str, Tensor]:
        """Weights as (in, out), rows padded to whole vectors."""
        w, s = self.w, self.sizes
        bias_ih, bias_hh, output_bias, gate_bias = w.bias_ih, w.bias_hh, w.output_bias, w.gate_bias
        if bias_ih is None or bias_hh is None:
            bias_ih = bias_hh = torch.zeros_like(w.hh[..., 0])
        elif w.num_gates == 4:  # both halves of an LSTM's gates are only ever added
            bias_ih = bias_ih + bias_hh
        if output_bias is None or gate_bias is None:
            output_bias = gate_bias = torch.zeros_like(w.output[:, 0])
        qkv = torch.cat([w.comm_query, w.comm_key, w.comm_value], 2)
        return {
            "p_hh": _padded(w.hh.mT, s["gate"]),
            "p_qkv": _padded(qkv, s["width"]),
            "p_out": _padded(torch.cat([w.output, w.gate]).mT, s["pair"]),
            "p_b_ih": bias_ih.contiguous(),
            "p_b_hh": bias_hh.contiguous(),
            "p_b_out": torch.cat([output_bias, gate_bias]),
        }

    def _packed_back(self) -> dict[str, Tensor]:
        """The same weights as (out, in)."""
        w, s = self.w, self.sizes
        qkv = torch.cat([w.comm_query, w.comm_key, w.comm_value], 2)
        return {
            "p_hh_back": _padded(w.hh, s["unit"]),
            "p_qkv_back": _padded(qkv.mT, s["unit"]),
            "p_out_back": _padded(torch.cat([w.output, w.gate]), s["heads"]),
        }

    def _range(self, first: int, inputs: Hoisted, did: Sequence) -> dict[str, int]:
        return {
            "first": first, "last": first + len(inputs.query_side),
            "query_side": inputs.query_side.data_ptr(), "gate_side": inputs.gate_side.data_ptr(),
            "h": did.h.data_ptr(), "c": _address(did.c), "active": did.active.data_ptr(),
        }  # fmt: skip

    def _bias_sums(self) -> Tensor:
        """Gradients of the gates' bias, which every block summed up for itself."""
        s, item = self.sizes, self.w.hh.element_size()
        begin = self._entries[e.INDEX["s_d_bias"]] - self._arena.data_ptr()
        end = begin + (s["blocks"] - 1) * s["scratch_bytes"] + s["n"] * s["gate"] * item
        numbers = self._arena[begin:end].view(self.w.hh.dtype)
        shape = (s["blocks"], s["n"], s["g"] * s["d"])
        return numbers.as_strided(shape, (s["scratch_bytes"] // item, s["gate"], 1)).sum(0)


class _Layout(NamedTuple):
    """What of a table depends on sizes alone."""

    sizes: dict[str, int]
    entries: tuple[int, ...]
    scratch: tuple[tuple[int, int], ...]  # index of an entry, bytes from the arena's start
    arena_bytes: int


# A layer is called with few different sizes, and for a single step this would take a tenth of it.
@functools.lru_cache(maxsize=256)
def _lay_out(
    batch: int,
    hh: tuple[int, int, int],
    keys: int,
    values: int,
    rules: Rules,
    item: int,
    num_threads: int,
) -> _Layout:
    lanes = VECTOR_BYTES // item
    n, gates, d = hh
    share = -(-batch // num_threads)  # rounded up
    rows = min(MAX_BLOCK_ROWS, _round_up(share, 4) if batch > 1 else 1)
    sizes = {
        "blocks": -(-batch // rows), "block_rows": rows, "batch": batch,
        "n": n, "k": rules.k, "d": d, "g": gates // d, "m": rules.num_heads,
        "dk": keys // rules.num_heads, "dv": values // rules.num_heads,
        "reads_state": int(rules.reads_state),
        "unit": _round_up(d, lanes), "gate": _round_up(gates, lanes),
        "width": _round_up(2 * keys + values, lanes), "heads": _round_up(values, lanes),
        "pair": _round_up(2 * d, lanes), "others": _round_up(n, lanes),
    }  # fmt: skip
    counts = _scratch_counts(sizes)
    # One vector more each: the last row of an array is read in whole vectors too.
    bytes_ = [_round_up(count * item, 64) + VECTOR_BYTES for count in counts.values()]
    sizes["scratch_bytes"] = _round_up(sum(bytes_), 64)
    entries = [0] * e.SIZE
    for name, value in sizes.items():
        entries[e.INDEX[name]] = value
    entries[e.INDEX["scale"]] = struct.unpack("q", struct.pack("d", sizes["dk"] ** -0.5))[0]
    starts = accumulate(bytes_, initial=0)
    scratch = tuple(zip((e.INDEX[name] for name in counts), starts, strict=False))
    return _Layout(sizes, tuple(entries), scratch, sizes["blocks"] * sizes["scratch_bytes"] + 64)


def _scratch_counts(s: dict[str, int]) -> dict[str, int]:
    """Numbers in each array that a block writes for itself."""
    rows = s["block_rows"]
    all_units, readers = s["n"] * rows * s["unit"], rows * s["k"]
    return dict.fromkeys(e.SCRATCH, all_units) | {
        "s_share": rows * s["n"], "s_score": rows * s["n"],
        "s_picked": 2 * readers, "s_chosen": 2 * rows * s["n"],  # int64
        "s_pre": s["n"] * rows * s["gate"], "s_qkv": s["n"] * rows * s["width"],
        "s_alpha": readers * s["m"] * s["others"],
        "s_d_alpha": s["k"] * s["others"],
        "s_read": readers * s["heads"], "s_d_read": readers * s["heads"],
        "s_out": readers * s["pair"], "s_d_bias": s["n"] * s["gate"],
    }  # fmt: skip


def _padded(matrix: Tensor, width: int) -> Tensor:
    """The matrix in order of its lines, zeros up to ``width`` columns."""
    missing = width - matrix.shape[-1]
    return F.pad(matrix, (0, missing)) if missing else matrix.contiguous()


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step
