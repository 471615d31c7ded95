"""Contenders of the benchmark: a network without and with NFM, and the attention alone."""

from __future__ import annotations

import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfm import module
from nfm.attention import MemoryEntry, SlotRead, attend_plainly
from nfm.fast import attend
from nfm.models.preact_resnet import CIFAR_NFM, preact_resnet18
from rims.bench.cases import MIN_ROUNDS, Device, Pass
from rims.bench.timing import Contender

#: Points along both axes of an image of CIFAR.
IMAGE = 32
#: As CIFAR_NFM: maps that the last-but-one reader of the second pass finds at full size.
_SOURCES = (32, 16, 8, 4, 32)
_HEADS, _SIZE, _TOP_K = 4, 32, 5

Subject = Literal["network", "attention"]

#: Names by subject, the baseline of the ratios first.
NAMES: dict[Subject, tuple[str, ...]] = {
    "network": ("without NFM", "NFM", "NFM, attention written plainly"),
    "attention": ("written plainly", "ours"),
}


class Case(NamedTuple):
    """One contest."""

    subject: Subject
    work: Pass


_PASSES: tuple[Pass, ...] = ("training", "inference")
CASES = tuple(Case(subject, work) for subject in NAMES for work in _PASSES)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Cases to measure, and how.

    Args:
        planes: of the network's first stage.
        batch: images at a time.
        rounds: of a case, at most.
        seconds_per_case: a case that takes longer gets fewer rounds, but at least ``MIN_ROUNDS``.
        device: "cpu" or "cuda".
        threads: of torch on the processor.

    Raises:
        ValueError: if a number is out of range or there is no CUDA.
    """

    planes: int
    batch: int
    rounds: int
    seconds_per_case: float
    device: Device
    threads: int

    def __post_init__(self) -> None:
        for name, least in (("planes", 1), ("batch", 1), ("rounds", MIN_ROUNDS), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}.")
        if not 0 <= self.seconds_per_case <= 3600:  # written so that NaN fails
            raise ValueError(
                f"seconds_per_case must lie in [0, 3600]; got {self.seconds_per_case}."
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda': this torch finds no CUDA GPU; use --device cpu.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@contextmanager
def written_plainly() -> Iterator[None]:
    """While open, every NFM reads by :func:`nfm.attention.attend_plainly`."""

    def plainly(query: Tensor, memory: Any, *, random_scores: bool, **options: Any) -> SlotRead:
        assert not random_scores
        return attend_plainly(query, memory, **options)

    with unittest.mock.patch.object(module, "attend", plainly):
        yield


def contenders(case: Case, settings: Settings, batch: int | None = None) -> list[Contender]:
    """The contenders ``NAMES``, with the same input; ``batch`` replaces that of the settings."""
    torch.manual_seed(0)
    batch = settings.batch if batch is None else batch
    if case.subject == "attention":
        return _attentions(case, settings.device, batch)
    images = torch.randn(batch, 3, IMAGE, IMAGE, device=settings.device)
    classes = torch.randint(10, (batch,), device=settings.device)
    plain, with_nfm = (
        preact_resnet18(10, planes=settings.planes, nfm=nfm)
        .to(settings.device)
        .train(case.work == "training")
        for nfm in (None, CIFAR_NFM)
    )

    def run(network: nn.Module) -> Tensor:
        with torch.set_grad_enabled(case.work == "training"):
            loss = F.cross_entropy(network(images), classes)
        if case.work == "training":
            loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def run_plainly() -> Tensor:
        with written_plainly():
            return run(with_nfm)

    return [
        Contender(lambda: run(plain), plain.zero_grad),
        Contender(lambda: run(with_nfm), with_nfm.zero_grad),
        Contender(run_plainly, with_nfm.zero_grad),
    ]


def _attentions(case: Case, device: Device, batch: int) -> list[Contender]:
    needs_grad = case.work == "training"

    def draw(size: int) -> Tensor:
        shape = (batch, _HEADS * _SIZE, size, size)
        return torch.randn(shape, device=device, requires_grad=needs_grad)

    query = draw(IMAGE)
    memory = [MemoryEntry(draw(size), draw(size)) for size in _SOURCES]
    leaves: Sequence[Tensor] = [query, *(tensor for entry in memory for tensor in entry)]

    def runner(function: Callable[..., SlotRead]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.set_grad_enabled(needs_grad):
                read = function(query, memory, num_heads=_HEADS, top_k=_TOP_K).read
            if needs_grad:
                torch.autograd.grad(read.sum(), leaves)
            return read

        return run

    return [Contender(runner(function), lambda: None) for function in (attend_plainly, attend)]
