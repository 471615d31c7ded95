"""Cases of the benchmark: layer sizes, input shapes, passes, and how long to measure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from rims.checks import check_count, check_mechanisms

Kind = Literal["lstm", "gru"]
Pass = Literal["inference", "training"]
Device = Literal["cpu", "cuda"]

#: Quartiles of fewer rounds would say nothing.
MIN_ROUNDS = 3

#: Memory is measured from this shape on unless asked for: below, a fresh process for every figure
#: costs seconds and shows little but the allocator's rounding.
MEMORY_MIN_BATCH, MEMORY_MIN_STEPS = 16, 100


class Size(NamedTuple):
    """The four numbers of a RIM layer; the baseline takes the first two."""

    input_size: int
    hidden_size: int
    num_rims: int
    k: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


class Case(NamedTuple):
    """One comparison of a RIM layer with its baseline."""

    size: Size
    kind: Kind
    work: Pass
    batch: int
    steps: int

    @property
    def ours(self) -> str:
        """The name of the layer that is compared."""
        return f"RIM_{self.kind.upper()}"

    @property
    def baseline(self) -> str:
        """The name of what it is compared with."""
        return f"nn.{self.kind.upper()}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the key of ``work`` is "pass"."""
        plain = self._asdict()
        plain["size"] = list(self.size)
        plain["pass"] = plain.pop("work")
        return plain

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> Case:
        """The case that ``to_dict`` made."""
        return Case(
            Size(*plain["size"]), plain["kind"], plain["pass"], plain["batch"], plain["steps"]
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Cases to measure, and how.

    Args:
        sizes: layer sizes.
        kinds: which layers, "lstm" and "gru".
        passes: "inference" and "training".
        batches: sequences at a time.
        steps: lengths of a sequence.
        rounds: of one case, at most; in each both layers run once.
        seconds_per_case: a case that takes longer gets fewer rounds, but at least ``MIN_ROUNDS``.
        device: "cpu" or "cuda".
        threads: of torch on the processor.
        memory: measure memory for every case or for none; None: for large enough ones.

    Raises:
        ValueError: if a size makes no RIM layer, a number is out of range or there is no CUDA.
    """

    sizes: tuple[Size, ...]
    kinds: tuple[Kind, ...]
    passes: tuple[Pass, ...]
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    rounds: int
    seconds_per_case: float
    device: Device
    threads: int
    memory: bool | None

    def __post_init__(self) -> None:
        for size in self.sizes:
            check_count(f"size {size}", "input_size", size.input_size)
            check_mechanisms(f"size {size}", size.hidden_size, size.num_rims, size.k, 0)
        check_count("bench", "rounds", self.rounds, MIN_ROUNDS)
        check_count("bench", "threads", self.threads)
        if not 0 <= self.seconds_per_case <= 3600:  # written so that NaN fails
            raise ValueError(
                f"seconds_per_case must lie in [0, 3600]; got {self.seconds_per_case}."
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "device 'cuda': this torch finds no CUDA GPU; use a machine with one and a torch "
                "built for CUDA, or --device cpu."
            )

    def cases(self) -> list[Case]:
        """Every combination, the small ones of a size first."""
        grid = itertools.product(self.sizes, self.steps, self.batches, self.kinds, self.passes)
        return [Case(size, kind, work, batch, steps) for size, steps, batch, kind, work in grid]

    def wants_memory(self, case: Case) -> bool:
        """Whether the memory of ``case`` is to be measured."""
        if self.memory is None:
            return case.batch >= MEMORY_MIN_BATCH and case.steps >= MEMORY_MIN_STEPS
        return self.memory
