"""The processes that train one agent together: one alone, or those that torchrun has started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab.running.guards import RunStopped
from lab.running.ranks import launched, local_device

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that processes wait for each other; a rollout must not take longer.
TIMEOUT = 600.0


class WorldBroken(RunStopped):
    """Another process of the run has ended or does not answer."""

    def __init__(self) -> None:
        super().__init__(
            "training stopped: another process of this run has ended or hangs. "
            "The last checkpoint is as it was; resume the run."
        )


class World:
    """One process alone. Subclassed for several, which call all methods but ``part`` together.

    Attributes:
        rank: rank of this process, from 0.
        size: number of processes.
    """

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """The slice of ``total`` things of this process; all slices have equal length."""
        each = total // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return tensor

    def gather(self, tensor: Tensor, dim: int) -> Tensor:
        """Tensors of all processes, of equal sizes, joined along ``dim`` by rank."""
        return tensor

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Rows of all processes, however many each has."""
        return tensor

    def largest(self, value: float) -> float:
        """The largest value of all processes."""
        return value

    def same(self, tensor: Tensor) -> None:
        """Give ``tensor`` the first process's values."""

    def wait(self) -> None:
        """Until all processes have come here."""


class Ranks(World):
    """Processes joined by ``torch.distributed``, made by :func:`joined`."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    def sum(self, tensor: Tensor) -> Tensor:
        """Computed by all-reduce."""
        here = tensor.to(self.device)  # the same one, where it is there already
        _together(lambda: torch.distributed.all_reduce(here))
        return tensor if here is tensor else tensor.copy_(here)

    def gather(self, tensor: Tensor, dim: int) -> Tensor:
        """Computed by all-gather; sizes are equal on all processes."""
        # Booleans travel as bytes: not every backend knows them.
        mine = (tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor).to(self.device)
        parts = [mine.new_empty(mine.shape) for _ in range(self.size)]
        _together(lambda: torch.distributed.all_gather(parts, mine.contiguous()))
        return torch.cat(parts, dim).to(device=tensor.device, dtype=tensor.dtype)

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Computed by all-gather of rows padded to the same number."""
        most = int(self.largest(len(tensor)))
        padded = tensor.new_zeros(most, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        counts = self.gather(torch.tensor([len(tensor)]), 0).tolist()
        every = self.gather(padded, 0).view(self.size, most, *tensor.shape[1:])
        return torch.cat([rows[:count] for rows, count in zip(every, counts, strict=True)])

    def largest(self, value: float) -> float:
        """Computed by all-reduce."""
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        largest = torch.distributed.ReduceOp.MAX
        _together(lambda: torch.distributed.all_reduce(tensor, largest))
        return float(tensor)

    def wait(self) -> None:
        """Waits by reducing a number that takes part in no computation."""
        self.largest(0.0)

    def same(self, tensor: Tensor) -> None:
        """Computed by broadcast."""
        _together(lambda: torch.distributed.broadcast(tensor, 0))


def _together(communicate: Callable[[], object]) -> None:
    try:
        communicate()
    except RuntimeError:  # of the backend, many lines long
        raise WorldBroken from None


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The processes torchrun has started, joined for the time of the block; alone without it.

    Gloo between CPUs, NCCL between GPUs.

    Args:
        device: the device in the run's settings.

    Raises:
        RunStopped: in one line, if they cannot be joined.
    """
    rank, size = launched()
    if size == 1:
        yield World()
        return
    own = torch.device(local_device(device))
    if own.type == "cuda":
        torch.cuda.set_device(own)
    backend = "nccl" if own.type == "cuda" else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT))
    except (RuntimeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunStopped(f"the {size} processes could not be joined ({why}).") from None
    try:
        yield Ranks(rank, size, own)
    finally:
        torch.distributed.destroy_process_group()
