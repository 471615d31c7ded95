"""The recurrent part of a sequence by the native kernels."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Listed
from struct import Struct

import torch
from torch import Tensor

from rims.native import threads
from rims.native.memory import address
from rims.scan.native import build
from rims.scan.native import table as e
from rims.scan.native.layout import lay_out, round_up
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Carry, Hoisted, LoopWeights, Recurrence, Sequence


class _Entries:
    """Entries of a table that lie side by side and are set together."""

    def __init__(self, names: Listed[str]) -> None:
        first = e.INDEX[names[0]]
        assert [e.INDEX[name] - first for name in names] == list(range(len(names)))
        self._struct, self._begin = Struct(f"{len(names)}q"), 8 * first
        self.names = names

    def set(self, table: array[int], values: Listed[int]) -> None:
        self._struct.pack_into(table, self._begin, *values)


_GIVEN, _SEQUENCE, _INPUTS, _OF_STEPS, _CARRIED, _SUMS = map(
    _Entries, (e.GIVEN, e.SEQUENCE, e.INPUTS, e.OF_STEPS, e.CARRIED, e.SUMS)
)
_RANGE = _Entries(("first", "last"))
_FLAGS = _Entries(("has_reset", "has_valid", "has_fresh", "has_bias", "has_comm_bias"))
_NEXT, _DONE, _PACKS, _SO_FAR, _IS_END = (
    e.INDEX[name] for name in ("next", "done", "packs", "so_far", "is_end")
)

_DENSE = torch.contiguous_format


class NativeRecurrence(Recurrence):
    """Machine code for the CPU, float32 and float64, on as many threads as PyTorch uses."""

    def __init__(
        self, w: Weights, rules: Rules, states: States, flags: Flags, *, shares: int | None = None
    ) -> None:
        """A batch is divided into ``shares``; by default one for every thread."""
        # Kept alive here: the table holds their addresses.
        w = Weights(*map(_dense, w))  # type: ignore[arg-type]
        states, flags = States(*map(_dense, states)), Flags(*map(_dense, flags))  # type: ignore[arg-type]
        super().__init__(w, rules, states, flags)
        self.double = w.hh.dtype == torch.float64
        self.num_threads = torch.get_num_threads()
        layout = self._layout = lay_out(
            states.h.shape[0], w.hh.shape, w.comm_key.shape[2], w.comm_value.shape[2],
            rules, w.hh.element_size(), shares or self.num_threads,
        )  # fmt: skip
        # A table that all groups share, followed by one for each group.
        self._table = array("q", layout.entries) * (1 + layout.sizes["groups"])
        self._rooms = [
            self._room(layout.arena_bytes, layout.scratch),
            self._room(layout.packed_bytes, layout.packed),
        ]
        self.num_bytes = layout.arena_bytes + layout.packed_bytes
        self._given = self._addresses()
        _GIVEN.set(self._table, self._given)
        _FLAGS.set(self._table, _present(w, states, flags))
        for target, source in layout.as_given:
            self._table[target] = self._table[source]
        self._pack("forward")
        self._sums: LoopWeights | None = None

    def _room(self, count: int, places: tuple[tuple[int, int], ...]) -> Tensor:
        """Allocate ``count`` bytes and put their addresses into the table."""
        room = torch.empty(count, dtype=torch.uint8, device="cpu")  # whatever the default device
        start = round_up(room.data_ptr(), 64)
        for index, offset in places:
            self._table[index] = start + offset
        return room

    def is_stale(self) -> bool:
        """See :meth:`Recurrence.is_stale`."""
        return self._given != self._addresses()

    def forward(self, first: int, inputs: Hoisted, out: Sequence) -> None:
        """See :meth:`Recurrence.forward`."""
        self._set_steps(first, inputs, out)
        self._run("forward")

    def backward(
        self,
        first: int,
        inputs: Hoisted,
        did: Sequence,
        grad_output: Tensor,
        carry: Carry,
        out: Hoisted,
    ) -> None:
        """See :meth:`Recurrence.backward`."""
        table = self._table
        table[_SO_FAR] = self._sums is not None
        if self._sums is None:
            self._sums = self._begin_sums()
        table[_IS_END] = first == 0
        self._set_steps(first, inputs, did)
        of_steps = *out, grad_output.contiguous()
        self._set(_OF_STEPS, of_steps, inputs.query_side.shape[0])
        self._set(_CARRIED, carry)
        self._run("back")

    def gradients(self) -> LoopWeights:
        """See :meth:`Recurrence.gradients`."""
        assert self._sums is not None
        return self._sums

    def _begin_sums(self) -> LoopWeights:
        """Room for what groups hold, and for the sums of all."""
        layout, w = self._layout, self.w
        # Without a group nothing is written.
        like = torch.empty_like if layout.sizes["groups"] else torch.zeros_like
        self._pack("back")
        self._rooms.append(self._room(layout.held_bytes, layout.held))
        biases = [w.hh[..., 0]] * 2 + [w.hh[0, : w.unit_size, 0]] * 2
        sums = LoopWeights(*(like(part, memory_format=_DENSE) for part in (*w[4:10], *biases)))
        _SUMS.set(self._table, [part.data_ptr() for part in sums])
        return sums

    def _pack(self, name: str) -> None:
        self._table[_PACKS] = 1
        self._run(name)
        self._table[_PACKS] = 0

    def _run(self, name: str) -> None:
        table = self._table
        table[_NEXT] = table[_DONE] = 0
        place, _ = table.buffer_info()
        count = min(self.num_threads, self._layout.sizes["groups"])
        threads.run(build.code(name, self.double).address, place, count)

    def _set_steps(self, first: int, inputs: Hoisted, did: Sequence) -> None:
        steps = inputs.query_side.shape[0]
        last = first + steps
        _RANGE.set(self._table, (first, last))
        self._set(_INPUTS, inputs, steps)
        self._set(_SEQUENCE, (*self.flags, *did), max(last, did.h.shape[0]))

    def _addresses(self) -> list[int]:
        return self._places(_GIVEN, (*self.states, *self.w[4:]))

    def _set(self, entries: _Entries, tensors: Iterable[Tensor | None], steps: int = 1) -> None:
        entries.set(self._table, self._places(entries, tensors, steps))

    def _places(
        self, entries: _Entries, tensors: Iterable[Tensor | None], steps: int = 1
    ) -> list[int]:
        """Addresses for ``entries``, checked to hold ``steps`` steps if they have steps."""
        counts, dtype = self._layout.counts, self.w.hh.dtype
        return [
            address(tensor, torch.bool if name in e.BYTES else dtype, steps * counts[name])
            for name, tensor in zip(entries.names, tensors, strict=True)
        ]


def _present(w: Weights, states: States, flags: Flags) -> tuple[bool, ...]:
    return (
        flags.reset is not None,
        flags.valid is not None,
        states.fresh_h is not None,
        w.bias_ih is not None and w.bias_hh is not None,
        w.output_bias is not None and w.gate_bias is not None,
    )


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
