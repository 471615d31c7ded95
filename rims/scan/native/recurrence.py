"""The recurrent part of a sequence by the native kernels."""

from __future__ import annotations

import math
import struct
from itertools import accumulate

import torch
from torch import Tensor

from rims.scan.native import build, threads
from rims.scan.native import table as e
from rims.scan.native.simd import VECTOR_BYTES
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Carry, Hoisted, LoopGradients, Recurrence, Sequence

#: Samples of a block at most: a weight fetched from the second-level cache serves so many, and
#: what they leave within a step still fits there beside all weights.
MAX_BLOCK_ROWS = 32


class NativeRecurrence(Recurrence):
    """In machine code for the CPU, float32 and float64; threads as PyTorch is set to use."""

    packs_active = True

    def __init__(self, w: Weights, rules: Rules, states: States, flags: Flags) -> None:
        w = Weights(*(None if weight is None else weight.contiguous() for weight in w))
        states = States(*(None if s is None else s.contiguous() for s in states))  # type: ignore[arg-type]
        flags = Flags(*(None if flag is None else flag.contiguous() for flag in flags))
        super().__init__(w, rules, states, flags)
        self.double = w.hh.dtype == torch.float64
        self.num_threads = torch.get_num_threads()
        self.sizes = self._sizes(states.h.shape[0])
        self._packed: list[Tensor] = []
        addresses = self._given() | self._pack() | self._scratch()
        table = torch.zeros((1 + self.sizes["blocks"]) * e.SIZE, dtype=torch.int64)
        self._shared = table[: e.SIZE]
        self._table = table
        flags = {
            "has_reset": self.flags.reset, "has_valid": self.flags.valid,
            "has_fresh": self.states.fresh_h,
        }  # fmt: skip
        scale = struct.unpack("q", struct.pack("d", 1 / math.sqrt(self.sizes["dk"])))[0]
        given = {name: int(tensor is not None) for name, tensor in flags.items()}
        self._set(self.sizes | addresses | given | {"scale": scale})
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
            self._set(self._pack_back())
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
        self._shared[e.INDEX["next"]] = 0
        count = min(self.num_threads, self.sizes["blocks"])
        threads.run(build.address(name, self.double), self._table.data_ptr(), count)

    def _set(self, entries: dict[str, int]) -> None:
        index = torch.tensor([e.INDEX[name] for name in entries])
        self._shared[index] = torch.tensor(list(entries.values()), dtype=torch.int64)

    def _sizes(self, batch: int) -> dict[str, int]:
        w, rules = self.w, self.rules
        lanes = VECTOR_BYTES // w.hh.element_size()
        n, gates, d = w.hh.shape
        heads = rules.num_heads
        values = w.comm_value.shape[2]
        keys = w.comm_key.shape[2]
        share = -(-batch // self.num_threads)  # rounded up
        rows = min(MAX_BLOCK_ROWS, _round_up(share, 4) if batch > 1 else 1)
        return {
            "blocks": -(-batch // rows), "block_rows": rows, "batch": batch,
            "n": n, "k": rules.k, "d": d, "g": gates // d, "m": heads,
            "dk": keys // heads, "dv": values // heads, "reads_state": int(rules.reads_state),
            "unit": _round_up(d, lanes), "gate": _round_up(gates, lanes),
            "width": _round_up(2 * keys + values, lanes), "heads": _round_up(values, lanes),
            "pair": _round_up(2 * d, lanes), "others": _round_up(n, lanes),
        }  # fmt: skip

    def _given(self) -> dict[str, int]:
        tensors = {
            "reset": self.flags.reset, "valid": self.flags.valid,
            "h0": self.states.h, "c0": self.states.c,
            "fresh_h": self.states.fresh_h, "fresh_c": self.states.fresh_c,
        }  # fmt: skip
        return {name: _address(tensor) for name, tensor in tensors.items()}

    def _pack(self) -> dict[str, int]:
        """Weights as (in, out), rows padded to whole vectors."""
        w, s = self.w, self.sizes
        bias_ih = torch.zeros_like(w.hh[..., 0]) if w.bias_ih is None else w.bias_ih
        bias_hh = torch.zeros_like(w.hh[..., 0]) if w.bias_hh is None else w.bias_hh
        if w.num_gates == 4:  # both halves of an LSTM's gates are only ever added
            bias_ih = bias_ih + bias_hh
        zeros = torch.zeros_like(w.output[:, 0])
        biases = [zeros if b is None else b for b in (w.output_bias, w.gate_bias)]
        return self._keep(
            p_hh=_padded(w.hh.mT, s["gate"]),
            p_qkv=_padded(torch.cat([w.comm_query, w.comm_key, w.comm_value], 2), s["width"]),
            p_out=_padded(torch.cat([w.output, w.gate]).mT, s["pair"]),
            p_b_ih=_padded(bias_ih, s["gate"]),
            p_b_hh=_padded(bias_hh, s["gate"]),
            p_b_out=_padded(torch.cat(biases).unsqueeze(0), s["pair"]),
        )

    def _pack_back(self) -> dict[str, int]:
        """The same weights as (out, in)."""
        w, s = self.w, self.sizes
        qkv = torch.cat([w.comm_query, w.comm_key, w.comm_value], 2)
        return self._keep(
            p_hh_back=_padded(w.hh, s["unit"]),
            p_qkv_back=_padded(qkv.mT, s["unit"]),
            p_out_back=_padded(torch.cat([w.output, w.gate]), s["heads"]),
        )

    def _keep(self, **tensors: Tensor) -> dict[str, int]:
        self._packed += tensors.values()
        return {name: tensor.data_ptr() for name, tensor in tensors.items()}

    def _scratch(self) -> dict[str, int]:
        s = self.sizes
        rows = s["block_rows"]
        all_units, readers = s["n"] * rows * s["unit"], rows * s["k"]
        counts = dict.fromkeys(e.SCRATCH, all_units) | {
            "s_share": rows * s["n"], "s_score": rows * s["n"],
            "s_picked": 2 * readers, "s_chosen": 2 * rows * s["n"],  # int64
            "s_pre": s["n"] * rows * s["gate"], "s_qkv": s["n"] * rows * s["width"],
            "s_alpha": readers * s["m"] * s["others"],
            "s_read": readers * s["heads"], "s_d_read": readers * s["heads"],
            "s_out": readers * s["pair"], "s_d_bias": s["n"] * s["gate"],
        }  # fmt: skip
        # One vector more each: the last row of an array is read in whole vectors too.
        item = self.w.hh.element_size()
        sizes = [_round_up(c * item, 64) + VECTOR_BYTES for c in counts.values()]
        s["scratch_bytes"] = _round_up(sum(sizes), 64)
        self._arena = torch.empty(s["blocks"] * s["scratch_bytes"] + 64, dtype=torch.uint8)
        starts = accumulate(sizes, initial=_round_up(self._arena.data_ptr(), 64))
        return dict(zip(counts, starts, strict=False))

    def _range(self, first: int, inputs: Hoisted, did: Sequence) -> dict[str, int]:
        return {
            "first": first, "last": first + len(inputs.query_side),
            "query_side": inputs.query_side.data_ptr(), "gate_side": inputs.gate_side.data_ptr(),
            "h": did.h.data_ptr(), "c": _address(did.c), "active": did.active.data_ptr(),
        }  # fmt: skip

    def _bias_sums(self) -> Tensor:
        """Gradients of the gates' bias, which every block summed up for itself."""
        s, item = self.sizes, self.w.hh.element_size()
        begin = int(self._shared[e.INDEX["s_d_bias"]]) - self._arena.data_ptr()
        end = begin + (s["blocks"] - 1) * s["scratch_bytes"] + s["n"] * s["gate"] * item
        numbers = self._arena[begin:end].view(self.w.hh.dtype)
        shape = (s["blocks"], s["n"], s["g"] * s["d"])
        return numbers.as_strided(shape, (s["scratch_bytes"] // item, s["gate"], 1)).sum(0)


def _padded(matrix: Tensor, width: int) -> Tensor:
    """The matrix in memory of its own, zeros up to ``width`` columns and one vector beyond."""
    padded = matrix.new_zeros(matrix.numel() // matrix.shape[-1] * width + VECTOR_BYTES)
    lines = padded[:-VECTOR_BYTES].view(*matrix.shape[:-1], width)
    lines[..., : matrix.shape[-1]] = matrix
    return padded


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step
