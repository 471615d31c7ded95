"""Insert NFM into an existing network without rewriting it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, Unpack

import torch
from torch import Tensor, nn

from nfm.attention import Memory
from nfm.network import NFMOptions, Pass, Passes, copy_of
from nfm.surroundings import Surroundings

#: Arguments of one call: a lone positional one, several, or named ones.
Example = Tensor | Sequence[Any] | Mapping[str, Any]


class _Call:
    """One call of an inserted network: the pass it is in, and the memory its places fill.

    Args:
        at: names of the places.
    """

    def __init__(self, at: Sequence[str]) -> None:
        self.at = at
        self.around = Surroundings.now()
        self.memory: Memory = ()
        self.now: Pass
        self.called: set[int] = set()  # places, in this pass

    def reach(self, place: int, output: Any) -> Any:
        """Return what replaces ``output``, which a place has returned."""
        name = self.at[place]
        if place in self.called:
            raise RuntimeError(f"insert: submodule {name!r} was called twice in a pass.")
        _require_same(name, self.around, RuntimeError)
        map, rest = _split(output, name)
        map, self.memory = self.now.call(place, map, self.memory)
        self.called.add(place)
        if len(self.called) == len(self.at) and not self.now.is_last:
            raise _PassEnd(self)
        return _join(map, rest)


class _PassEnd(BaseException):
    """Ends a pass that is not the last: the rest of the network is not needed.

    Not an ``Exception``, so a network that catches those does not continue.
    """

    def __init__(self, call: _Call) -> None:
        self.call = call


class _Tape(threading.local):
    """The running call of one network in this thread, if any.

    Submodules of a foreign network cannot receive it as an argument.
    """

    def __init__(self) -> None:
        self.call: _Call | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


class _Place:
    """The forward hook of one submodule: its output goes through the NFM of that place."""

    def __init__(self, tape: _Tape, index: int) -> None:
        self.tape, self.index = tape, index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = self.tape.call
        # None: the network is called on its own, without NFM.
        return None if call is None else call.reach(self.index, output)


class NFMInserted(nn.Module):
    """A network with NFM inside; made by :func:`insert`.

    Attributes:
        models: the network once per pass (once, if the passes share parameters), the last of
            which is the one that was given.
        nfms: the NFMs by pass and place.
        at: names of the submodules they follow, in the order in which these are called.
    """

    def __init__(
        self,
        model: nn.Module,
        at: Sequence[str],
        channels: Sequence[int],
        unused: Sequence[nn.Parameter],
        **options: Unpack[NFMOptions],
    ) -> None:
        super().__init__()
        self.at = tuple(at)
        self.nfms = Passes(channels, **options)
        copies = 1 if self.nfms.share else len(self.nfms)
        # Parameters after the last place are not copied: copies would have no gradient, as only the
        # last pass uses them.
        self.models = nn.ModuleList(
            copy.deepcopy(model, {id(p): p for p in unused}) for _ in range(copies - 1)
        )
        self.models.append(model)
        self._tape = _Tape()
        for each in self.models:
            for index, name in enumerate(self.at):
                each.get_submodule(name).register_forward_hook(_Place(self._tape, index))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run all passes on the same arguments; what the last returns."""
        call = _Call(self.at)
        outer, self._tape.call = self._tape.call, call  # a hook inside may call the network, too
        output = None
        try:
            for k, (now, given) in enumerate(self.nfms.over((args, kwargs))):
                call.now, call.called = now, set()
                model = self.models[0 if self.nfms.share else k]
                try:
                    output = model(*given[0], **given[1])
                except _PassEnd as end:
                    if end.call is not call:  # it ends a pass of an outer network
                        raise
                if not call.called:
                    raise RuntimeError(
                        f"insert: none of {list(self.at)} was called in this thread, so that "
                        "there was no NFM. Put what calls them in threads, such as "
                        "nn.DataParallel, around the result of insert."
                    )
        finally:
            self._tape.call = outer
        return output


def insert(
    model: nn.Module, at: Sequence[str], *, example: Example, **options: Unpack[NFMOptions]
) -> NFMInserted:
    r"""Put NFM after the named submodules of a network and run it in several passes.

    Every pass gives the network the same input; after each named submodule an :class:`nfm.NFM`
    reads what the named submodules returned so far, in this pass and earlier ones
    (arXiv:2010.08012, Algorithm 1). Passes but the last end at the last named submodule. At the
    start, with every gamma 0, the result is what the network returns without NFM.

    The network given becomes that of the last pass, and can still be called on its own, without
    NFM; earlier passes have copies of it unless ``share=True``. It may change tensors in place:
    every pass gets the arguments as they came, and what an NFM keeps is its own. To save memory by
    recomputation, put ``torch.utils.checkpoint`` around the whole result: inside, the memory would
    be missing when a named submodule is computed again, which is refused. Function transforms of
    ``torch.func`` and ``nn.DataParallel`` go around the whole result, too.

    Args:
        model: any network whose named submodules return a map ``(B, C, *size)`` of one to three
            axes, or a tuple or list that begins with one, each once per call.
        at: their names, as in ``model.named_modules()``.
        example: what the network takes: a tensor, a sequence of positional arguments or a mapping
            of named ones. One dry run on a copy, in evaluation mode, finds the shapes.
        options: see :class:`nfm.NFMOptions`: ``passes=2``, ``share``, ``top_k`` and so on.

    Returns:
        A module called like ``model``, which returns what ``model`` returns; like it in training
        or in evaluation mode.

    Raises:
        ValueError: for a name that is not there, a submodule that is not called once, does not
            return a map, is called without gradients or inside a checkpoint or a function
            transform, or options that cannot be.
        RuntimeError: by a call of what is returned, where one of these things shows only then.

    Example:
        >>> plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2))
        >>> network = insert(plain, at=["1", "2"], example=torch.zeros(1, 3, 9, 9), top_k=3)
        >>> network(torch.zeros(2, 3, 9, 9)).shape
        torch.Size([2, 4, 3, 3])
    """
    probe = _probe(model, at, example)
    found = {map.dim() - 2 for map in probe.maps}
    dims = options.setdefault("spatial_dims", min(found))
    if found != {dims}:
        raise ValueError(f"insert: all maps must have {dims} axes; got {sorted(found)}.")
    channels = [map.shape[1] for map in probe.maps]
    parameters = dict(model.named_parameters())
    unused = [parameters[name] for name in probe.unused]
    wrapped = NFMInserted(model, probe.order, channels, unused, **options)
    first = next(model.parameters(), None)
    if first is not None and first.is_floating_point():
        wrapped.nfms.to(first)
    wrapped.training = model.training  # its submodules keep their modes
    wrapped.nfms.train(model.training)
    return wrapped


class _Probe(NamedTuple):
    """Results of a dry run."""

    order: list[str]  # the named submodules, as they are called
    maps: list[Tensor]  # what they return
    unused: list[str]  # parameters that no map depends on


def _probe(model: nn.Module, at: Sequence[str], example: Example) -> _Probe:
    if not at or len(set(at)) < len(at):
        raise ValueError(f"insert: at must name one or more submodules, each once; got {list(at)}.")
    known = dict(model.named_modules(remove_duplicate=False))
    for name in at:
        if name not in known:
            raise ValueError(f"insert: there is no submodule {name!r} (see named_modules()).")
    copied = copy.deepcopy(model).eval().requires_grad_(True)
    calls: list[tuple[str, Tensor]] = []

    def note(name: str, output: Any) -> None:
        map, _ = _split(output, name)
        _require_same(name, around, ValueError)
        calls.append((name, map.clone()))  # it may be changed in place

    for name in at:
        copied.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: note(name, output)
        )
    with torch.enable_grad():
        around = Surroundings.now()
        _call(copied, copy_of(example))
        order = [name for name, _ in calls]
        for name in at:
            if order.count(name) != 1:
                raise ValueError(
                    f"insert: submodule {name!r} must be called once in a pass; "
                    f"it was called {order.count(name)} times."
                )
        parameters = dict(copied.named_parameters())
        total = torch.stack([map.sum().float() for _, map in calls]).sum()
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        if total.requires_grad:
            gradients = torch.autograd.grad(total, [*parameters.values()], allow_unused=True)
    unused = [name for name, g in zip(parameters, gradients, strict=True) if g is None]
    return _Probe(order, [map.detach() for _, map in calls], unused)


def _require_same(name: str, outer: Surroundings, error: type[Exception]) -> None:
    """Raise if a submodule is called where NFM after it would lose gradients or its memory."""
    between = Surroundings.now().unlike(outer)
    if between is not None:
        raise error(
            f"insert: submodule {name!r} is called {between}, so that NFM after it could not "
            "learn. Name one outside, or put that around the whole result of insert."
        )


def _call(model: nn.Module, example: Example) -> Any:
    if isinstance(example, Tensor):
        return model(example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example)


def _split(output: Any, name: str = "") -> tuple[Tensor, Any]:
    """The map of what a submodule returned, and what is around it."""
    map = output[0] if isinstance(output, tuple | list) and output else output
    if not (isinstance(map, Tensor) and map.is_floating_point() and 3 <= map.dim() <= 5):
        shape = tuple(map.shape) if isinstance(map, Tensor) else type(output).__name__
        raise ValueError(
            f"insert: submodule {name!r} must return a map (B, C, *size) of one to three axes; "
            f"got {shape}."
        )
    return map, output


def _join(map: Tensor, output: Any) -> Any:
    """``output`` with its map replaced by ``map``."""
    if isinstance(output, Tensor):
        return map
    rest = (map, *output[1:])
    if isinstance(output, list):
        return list(rest)
    return type(output)(*rest) if hasattr(output, "_fields") else rest
