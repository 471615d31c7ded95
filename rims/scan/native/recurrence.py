"""The recurrent part of a sequence by the native kernels."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from rims.native import threads
from rims.scan.native import build
from rims.scan.native import table as e
from rims.scan.native.layout import lay_out, round_up
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Carry, Hoisted, LoopGradients, Recurrence, Sequence

#: Entries for the fields of States, of Flags, and of Weights from ``hh`` on.
_GIVEN = (
    "h0", "c0", "fresh_h", "fresh_c", "reset", "valid",
    "w_hh", "w_query", "w_key", "w_value", "w_output", "w_gate",
    "b_ih", "b_hh", "b_output", "b_gate",
)  # fmt: skip


class NativeRecurrence(Recurrence):
    """In machine code for the CPU, float32 and float64; threads as PyTorch is set to use."""

    packs_active = True

    def __init__(self, w: Weights, rules: Rules, states: States, flags: Flags) -> None:
        # Held here: the table has addresses of all.
        w = Weights(*map(_dense, w))  # type: ignore[arg-type]
        states, flags = States(*map(_dense, states)), Flags(*map(_dense, flags))  # type: ignore[arg-type]
        super().__init__(w, rules, states, flags)
        self.double = w.hh.dtype == torch.float64
        self.num_threads = torch.get_num_threads()
        layout = lay_out(
            states.h.shape[0], w.hh.shape, w.comm_key.shape[2], w.comm_value.shape[2],
            rules, w.hh.element_size(), self.num_threads,
        )  # fmt: skip
        self.sizes = layout.sizes
        # A table that all share, and behind it room for one of each block.
        self._table = array("q", layout.entries) * (1 + self.sizes["blocks"])
        self._arena = self._room(layout.arena_bytes, layout.scratch)
        self._packed = self._room(layout.packed_bytes, layout.packed)
        self.num_bytes = layout.arena_bytes + layout.packed_bytes
        self._given = self._find_given()
        self._set(self._given)
        self._set({f"p_{name}": self._given[f"w_{name}"] for name in layout.as_given})
        self._pack("forward")
        self._is_packed_back = False

    def _room(self, count: int, places: tuple[tuple[int, int], ...]) -> Tensor:
        """So many bytes, with their addresses put into the table."""
        room = torch.empty(count, dtype=torch.uint8, device="cpu")  # whatever the default device
        start = round_up(room.data_ptr(), 64)
        for index, offset in places:
            self._table[index] = start + offset
        return room

    def is_stale(self) -> bool:
        """See :meth:`Recurrence.is_stale`."""
        return self._given != self._find_given()

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
            self._pack("back")
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

    def _pack(self, name: str) -> None:
        self._set({"packs": 1})
        self._run(name)
        self._set({"packs": 0})

    def _run(self, name: str) -> None:
        self._set({"next": 0})
        address, _ = self._table.buffer_info()
        count = min(self.num_threads, self.sizes["blocks"])
        threads.run(build.address(name, self.double), address, count)

    def _set(self, entries: dict[str, int]) -> None:
        for name, value in entries.items():
            self._table[e.INDEX[name]] = value

    def _find_given(self) -> dict[str, int]:
        states, flags, w = self.states, self.flags, self.w
        given = dict(zip(_GIVEN, map(_address, (*states, *flags, *w[4:])), strict=True))
        return given | {
            "has_reset": flags.reset is not None,
            "has_valid": flags.valid is not None,
            "has_fresh": states.fresh_h is not None,
            "has_bias": w.bias_ih is not None and w.bias_hh is not None,
            "has_speech_bias": w.output_bias is not None and w.gate_bias is not None,
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
        begin = self._table[e.INDEX["s_d_bias"]] - self._arena.data_ptr()
        end = begin + (s["blocks"] - 1) * s["scratch_bytes"] + s["n"] * s["gate"] * item
        numbers = self._arena[begin:end].view(self.w.hh.dtype)
        shape = (s["blocks"], s["n"], s["g"] * s["d"])
        return numbers.as_strided(shape, (s["scratch_bytes"] // item, s["gate"], 1)).sum(0)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
