"""Record which earlier modules the NFMs of a network read, on request; or leave that to chance."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nfm.attention import Memory, SlotRead
from nfm.module import NFM, SlotAttention
from nfm.rescale import window_size
from rims.native.eager import is_recomputing


class Reading(NamedTuple):
    """Attention of one NFM in one call, detached."""

    reader: str  # name of the NFM in the network
    visit: int  # its how-manieth call, from 1: above that where passes share their NFMs
    sources: tuple[str, ...]  # names of the NFMs whose entries it could read, "null" last
    source_visits: tuple[int, ...]  # in which of its calls each of them wrote; 1 for "null"
    weights: Tensor  # (B, M, len(sources)) mean over points, all slots of a source together


@dataclass
class Trace:
    """Readings of a network's NFMs while :func:`trace` was open, in order of their calls."""

    readings: list[Reading] = field(default_factory=list)


@contextmanager
def trace(network: nn.Module) -> Iterator[Trace]:
    """Record every NFM inside ``network`` while the context is open.

    What is computed again for a gradient is recorded once; a compiled network runs without its
    compiled code.

    Args:
        network: any module with :class:`nfm.NFM` inside; every call of it begins with an empty
            memory, as those of :class:`nfm.NFMNetwork` and :func:`nfm.insert` do.

    Yields:
        A :class:`Trace`, filled as the network runs.

    Raises:
        RuntimeError: if the network is called inside a function transform, such as vmap.

    Example:
        >>> from nfm import NFMNetwork
        >>> network = NFMNetwork([nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)], [4, 4], passes=2)
        >>> with trace(network) as record:
        ...     _ = network(torch.zeros(2, 1, 8, 8))
        >>> [len(reading.sources) for reading in record.readings]
        [2, 4, 5]
        >>> record.readings[0].sources
        ('nfms.sets.0.0', 'null')
    """
    record = Trace()
    watch = _Watch(record)
    handles: list[RemovableHandle] = [
        network.register_forward_pre_hook(watch.enters),
        network.register_forward_hook(watch.leaves, always_call=True),
    ]
    for name, module in network.named_modules():
        if isinstance(module, NFM):
            begins, wrote = partial(watch.begins, name), partial(watch.wrote, name)
            handles.append(module.register_forward_pre_hook(begins, with_kwargs=True))
            handles.append(module.register_forward_hook(wrote, with_kwargs=True))
            if module.reads:
                hook = partial(watch.read, name)
                handles.append(module.attention.register_forward_hook(hook))
    try:
        with _without_compiled_code():
            yield record
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def random_attention(network: nn.Module) -> Iterator[None]:
    """While open, every NFM draws its scores from a normal distribution instead of choosing.

    The ablation of arXiv:2010.08012, section 4.4: a network that was trained to choose should be
    worse off without. Null slot and top-k remain.

    Args:
        network: any module with :class:`nfm.NFM` inside.

    Example:
        >>> module = NFM(4)
        >>> with random_attention(module):
        ...     module.attention.random
        True
        >>> module.attention.random
        False
    """
    modules = [m for m in network.modules() if isinstance(m, SlotAttention)]
    before = [m.random for m in modules]
    for module in modules:
        module.random = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.random = value


def _without_compiled_code() -> AbstractContextManager[Any]:
    """Compiled code does not check for hooks added since."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _Watch(threading.local):
    """Knows who wrote which entry of the memory that is being filled, in each thread."""

    def __init__(self, record: Trace) -> None:
        self.record = record
        self.writers: list[tuple[str, int]] = []  # of the entries: name and visit
        self.visits: dict[str, int] = {}  # by name, in the call of the network that is going on
        #: writers and visits of the calls around it: a hook may call the network, too
        self.outer: list[tuple[list[tuple[str, int]], dict[str, int]]] = []

    def enters(self, *_: Any) -> None:
        """A call of the whole network begins."""
        self.outer.append((self.writers, self.visits))
        self.writers, self.visits = [], {}

    def leaves(self, *_: Any) -> None:
        """The call ended, or failed before it began."""
        if self.outer:
            self.writers, self.visits = self.outer.pop()

    def begins(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """An NFM is called; with an empty memory, forget those before."""
        if _memory(args, kwargs) or is_recomputing():
            return
        self.writers = []
        if not self.outer and next(iter(self.visits), name) == name:  # a part is called alone
            self.visits = {}

    def read(self, name: str, module: nn.Module, args: tuple[Any, ...], out: SlotRead) -> None:
        """Its attention has read."""
        if is_recomputing():
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(out.weights):
            raise RuntimeError(
                f"trace: {name!r} is called inside a function transform (torch.func), after which "
                "nothing of its numbers is left. Trace a call without it."
            )
        assert isinstance(module, SlotAttention)
        query: Tensor = args[0]
        memory: Memory = args[1]
        visit = self.visits.get(name, 0) + 1
        # The module that reads has written before, but its own hook comes after this one.
        writers = [*self.writers, (name, visit)][: len(memory)]
        counts = [_num_slots(query, entry.key, module) for entry in memory]
        if module.null_slot:
            counts.append(1)
            writers.append(("null", 1))
        points = out.weights.detach().flatten(3).mean(3)  # (B, M, S)
        weights = torch.stack([part.sum(2) for part in torch.split(points, counts, dim=2)], dim=2)
        names, visits = zip(*writers, strict=True)
        self.record.readings.append(Reading(name, visit, names, visits, weights))

    def wrote(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: tuple[Tensor, Memory],
    ) -> None:
        """The call of an NFM has ended."""
        if is_recomputing():
            return
        self.visits[name] = self.visits.get(name, 0) + 1
        if len(out[1]) > len(_memory(args, kwargs)):
            self.writers.append((name, self.visits[name]))


def _memory(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Memory:
    """Memory that an NFM was given."""
    memory: Memory = args[1] if len(args) > 1 else kwargs.get("memory", ())
    return memory


def _num_slots(query: Tensor, key: Tensor, module: SlotAttention) -> int:
    if module.rescale == "nearest":
        return 1
    return math.prod(
        window_size(source, target)
        for source, target in zip(key.shape[2:], query.shape[2:], strict=True)
    )
