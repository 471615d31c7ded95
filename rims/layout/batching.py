"""Bring whatever nn.LSTM accepts (batched, unbatched, batch first, packed) to one form and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rims.checks import check_device, is_autocasting


class RepeatedInput(NamedTuple):
    """Sequences in which the same inputs recur, each distinct one given once.

    A layer treats it as ``rows[place]``, with the same output and gradients up to rounding. What
    depends on the input alone is computed once per row.

    Example:
        >>> import rims
        >>> words, text = torch.randn(10, 600), torch.randint(10, (50, 3))
        >>> output, _ = rims.RIM_LSTM(600, 300, 6, 4)(rims.RepeatedInput(words, text))
        >>> output.shape
        torch.Size([50, 3, 300])
    """

    rows: Tensor  # (U, I)
    place: Tensor  # (T, B), (B, T) if batch_first, or (T,), int64: the row each step reads

    def expand(self) -> Tensor:
        """The sequences as a tensor."""
        check_device("RepeatedInput", "place", self.place, self.rows)
        if self.rows.dim() != 2:
            return self.rows[self.place]
        return F.embedding(self.place, self.rows)  # its gradient is faster


def unrepeat(
    input: Tensor | PackedSequence | RepeatedInput,
) -> tuple[Tensor | PackedSequence, RepeatedInput | None]:
    """The sequences, and their repeated form if it can be used."""
    if not isinstance(input, RepeatedInput):
        return input, None
    # Autocast converts the sequences, not the rows.
    usable = input.rows.dim() == 2 and not is_autocasting(input.rows.device.type)
    return input.expand(), input if usable else None


class TimeMajor(NamedTuple):
    """A batch of sequences as (T, B, I), and how to restore the caller's form."""

    input: Tensor  # (T, B, I)
    restore: Callable[[Tensor], Any]  # output (T, B, D) -> the caller's form
    batch_first: bool = False
    unbatched: bool = False
    valid: Tensor | None = None  # (T, B) bool, false in padding
    order: Tensor | None = None  # caller's row for each row here (packed sequences are sorted)
    order_back: Tensor | None = None  # row here for each of the caller's


def check_input(
    where: str,
    input: Tensor | PackedSequence,
    input_size: int,
    batch_first: bool,
    *,
    unbatched_dim: int = 2,
) -> None:
    """Raise what nn.LSTM raises for an input of the wrong rank, feature size or length.

    Raises:
        ValueError: for a wrong rank.
        RuntimeError: for a wrong feature size or a sequence of no steps.
    """
    packed = isinstance(input, PackedSequence)
    data = input.data if isinstance(input, PackedSequence) else input
    if data.dim() != unbatched_dim and (packed or data.dim() != unbatched_dim + 1):
        raise ValueError(
            f"{where}: Expected input to be {unbatched_dim}D or {unbatched_dim + 1}D, "
            f"got {data.dim()}D instead"
        )
    if data.shape[-1] != input_size:
        raise RuntimeError(
            f"{where}: input.size(-1) must be equal to input_size. "
            f"Expected {input_size}, got {data.shape[-1]}"
        )
    time_dim = 1 if batch_first and data.dim() > unbatched_dim else 0
    if data.shape[time_dim] == 0:
        raise RuntimeError(f"{where}: Expected sequence length to be larger than 0")


def to_time_major(
    input: Tensor | PackedSequence, batch_first: bool, *, unbatched_dim: int = 2
) -> TimeMajor:
    """Bring a checked input to (T, B, I), or with slots (T, B, S, I).

    Args:
        input: ``(T, B, I)``, ``(B, T, I)`` if ``batch_first``, ``(T, I)`` or packed.
        batch_first: the layout of a batched input; others have no batch axis to move.
        unbatched_dim: rank of one sequence without a batch axis.

    Returns:
        The batch and how to undo it.
    """
    if isinstance(input, PackedSequence):
        return _from_packed(input)
    if input.dim() == unbatched_dim:
        return TimeMajor(input.unsqueeze(1), lambda o: o.squeeze(1), unbatched=True)
    if batch_first:
        return TimeMajor(input.transpose(0, 1), lambda o: o.transpose(0, 1), batch_first=True)
    return TimeMajor(input, lambda o: o)


def _from_packed(packed: PackedSequence) -> TimeMajor:
    # Rows stay in the sorted order of the packing; only states are in the caller's order.
    padded, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
    steps = torch.arange(padded.shape[0], device=padded.device).unsqueeze(-1)
    valid = steps < lengths.to(padded.device)  # (T, 1) < (B,) -> (T, B)

    def repack(output: Tensor) -> PackedSequence:
        data, batch_sizes, *_ = pack_padded_sequence(output, lengths)
        return PackedSequence(data, batch_sizes, packed.sorted_indices, packed.unsorted_indices)

    return TimeMajor(
        padded,
        repack,
        valid=valid,
        order=packed.sorted_indices,
        order_back=packed.unsorted_indices,
    )


def time_major_flags(where: str, name: str, flags: Tensor, batch: TimeMajor) -> Tensor:
    """Check ``reset`` or ``mask``, given in the caller's layout, and bring it to (T, B).

    Raises:
        ValueError: for a packed or masked input, a wrong shape or a dtype other than bool.
        RuntimeError: for another device than the input's.
    """
    if batch.valid is not None:
        raise ValueError(
            f"{where}: {name} cannot be combined with a PackedSequence or a mask. "
            "Pack the parts between resets as sequences of their own."
        )
    steps = flags.unsqueeze(-1) if batch.unbatched else flags  # (T,) -> (T, 1)
    if batch.batch_first and steps.dim() == 2:
        steps = steps.transpose(0, 1)
    if steps.shape != batch.input.shape[:2] or steps.dtype != torch.bool:
        raise ValueError(
            f"{where}: {name} must be a bool tensor with the leading shape of input, one flag "
            f"per step and sequence; got {flags.dtype} of shape {tuple(flags.shape)}."
        )
    check_device(where, name, flags, batch.input)
    return steps


def time_major_places(repeated: RepeatedInput | None, batch: TimeMajor) -> RepeatedInput | None:
    """``repeated`` with places (T, B); None for inputs that a mask has changed."""
    if repeated is None or batch.valid is not None:
        return None
    place = repeated.place
    if batch.unbatched:
        place = place.unsqueeze(1)
    elif batch.batch_first:
        place = place.transpose(0, 1)
    return repeated._replace(place=place)


def as_it_is(tensor: Tensor) -> tuple[int, int] | None:
    """Identity of a tensor and its count of changes in place; None in graphs, which have neither.

    PyTorch does not count changes of tensors that inference mode made.
    """
    if torch.compiler.is_compiling():
        return None
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def require_ends_only(where: str, valid: Tensor) -> None:
    """Raise ValueError if a mask (T, B) skips more than the ends of sequences."""
    if bool((valid[1:] & ~valid[:-1]).any()):
        raise ValueError(
            f"{where}: mask of a bidirectional layer must be true up to a sequence's end and false "
            "after it; it is false before a step where it is true."
        )


def flip_time(sequence: Tensor, valid: Tensor | None) -> Tensor:
    """Reverse (T, B, ...) in time, each row within its own valid steps; padding stays in place."""
    if valid is None:
        return sequence.flip(0)
    steps = torch.arange(len(sequence), device=sequence.device).unsqueeze(-1)  # (T, 1)
    index = torch.where(valid, valid.sum(0) - 1 - steps, steps)  # (T, B)
    index = index.reshape(index.shape + (1,) * (sequence.dim() - 2)).expand_as(sequence)
    return sequence.gather(0, index)


def side_by_side(outputs: list[Tensor]) -> Tensor:
    """Outputs of all directions, joined; a copy if the gradient needs the caller's tensor."""
    only, *others = outputs
    if others:
        return torch.cat(outputs, dim=-1)
    # A trace is the same with and without gradients.
    if only.requires_grad or torch._C._get_tracing_state() is not None:
        return only.clone()
    return only
