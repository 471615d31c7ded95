"""Algorithm 1 of arXiv:2010.08012: modules run several times, each reading all earlier ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict, TypeVar, Unpack

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nfm.attention import Memory
from nfm.module import NFM
from nfm.rescale import Rescale
from rims.functional import TopKRule

_T = TypeVar("_T")


class ModuleOptions(TypedDict, total=False):
    """Settings of every :class:`nfm.NFM` of a network; see there for meanings and defaults."""

    key_size: int
    value_size: int
    num_heads: int
    top_k: int | None
    topk_rule: TopKRule
    rescale: Rescale
    null_slot: bool
    batch_norm: bool
    out_kernel_size: int
    spatial_dims: int


class NFMOptions(ModuleOptions, total=False):
    """Settings of a network with NFM: those of its passes, and of every NFM in it."""

    passes: int  # K, default 2
    share: bool  # whether all passes have the same parameters, default False
    read: Sequence[bool]  # per pass, whether its NFMs read; default True
    write: Sequence[bool]  # per pass, whether they write; default True


class Pass(NamedTuple):
    """One of the K passes, with its NFMs."""

    nfms: nn.ModuleList
    read: bool
    write: bool
    is_last: bool

    def call(self, place: int, input: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The NFM at ``place`` of this pass."""
        read = self.read and (self.is_last or place < len(self.nfms) - 1)
        result: tuple[Tensor, Memory] = self.nfms[place](input, memory, read=read, write=self.write)
        return result


class Passes(nn.Module):
    """The NFMs of a network, by pass and place.

    The last place reads only in the last pass: before that, nobody sees what it would make of the
    map, for what it writes is the map as it came.

    Args:
        channels: of the map at every place.
        options: of :class:`NFMOptions`.

    Raises:
        ValueError: for options that cannot be.
    """

    def __init__(self, channels: Sequence[int], **options: Unpack[NFMOptions]) -> None:
        super().__init__()
        count = options.pop("passes", 2)
        if count < 1:
            raise ValueError(f"NFM: passes must be at least 1; got {count}.")
        self.share = options.pop("share", False)
        self.read = _per_pass("read", options.pop("read", None), count)
        self.write = _per_pass("write", options.pop("write", None), count)
        # All other options are those of the modules.
        own: ModuleOptions = options
        if self.share:
            flags = [(any(self.read), self.read[-1], any(self.write))]
        else:
            ends = (False,) * (count - 1) + self.read[-1:]
            flags = list(zip(self.read, ends, self.write, strict=True))
        self.sets = nn.ModuleList(
            nn.ModuleList(
                NFM(c, read=read if place < len(channels) else read_at_end, write=write, **own)
                for place, c in enumerate(channels, start=1)
            )
            for read, read_at_end, write in flags
        )

    def __len__(self) -> int:
        return len(self.read)

    def __iter__(self) -> Iterator[Pass]:
        for k, (read, write) in enumerate(zip(self.read, self.write, strict=True)):
            nfms = self.sets[0 if self.share else k]
            assert isinstance(nfms, nn.ModuleList)
            yield Pass(nfms, read, write, k == len(self) - 1)

    def over(self, input: _T) -> Iterator[tuple[Pass, _T]]:
        """Every pass with the same input, which a pass may change in place."""
        for one_pass in self:
            yield one_pass, input if one_pass.is_last else copy_of(input)


def copy_of(arguments: _T) -> _T:
    """Copies of tensors, also in tuples, lists and mappings: changing them leaves these alone."""
    copied: _T = tree_map_only(Tensor, Tensor.clone, arguments)
    return copied


def _per_pass(name: str, flags: Sequence[bool] | None, count: int) -> tuple[bool, ...]:
    if flags is None:
        return (True,) * count
    if len(flags) != count:
        raise ValueError(
            f"NFM: {name} must have one value for each of {count} passes; got {flags}."
        )
    return tuple(bool(flag) for flag in flags)


class NFMNetwork(nn.Module):
    r"""A list of modules, run K times over the same input, with an NFM after each of them.

    .. math:: h^0 = x, \qquad h^i, M = \mathrm{NFM}^i_k(f^i_k(h^{i-1}), M),
              \qquad i = 1 \dots N, \quad k = 1 \dots K

    (arXiv:2010.08012, Algorithm 1): the memory M goes on through all passes, so that every module
    can read all modules before it of this pass and of earlier ones. Later modules of earlier passes
    are top-down feedback. What is printed there puts the attention before a module; here it stands
    after the one before, so that the output of the last is refined too and the network's input,
    which may be anything, is not.

    With every gamma 0, as at the start, this is ``nn.Sequential(*modules)``.

    Args:
        modules: f^1 ... f^N. They become those of the last pass; earlier passes have copies, with
            the same weights at the start, unless ``share``.
        channels: of the map that each of them returns, ``(B, C, *size)``.
        options: of the passes and the NFMs, see :class:`NFMOptions`.

    Shape:
        whatever the first module takes -> ``(B, C_N, *size)``

    Raises:
        ValueError: for options that cannot be.

    Example:
        >>> import torch
        >>> layers = [nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)]
        >>> network = NFMNetwork(layers, [8, 16], passes=2, top_k=3)
        >>> network(torch.zeros(2, 3, 19, 19)).shape
        torch.Size([2, 16, 4, 4])
    """

    def __init__(
        self, modules: Sequence[nn.Module], channels: Sequence[int], **options: Unpack[NFMOptions]
    ) -> None:
        super().__init__()
        if len(modules) != len(channels):
            raise ValueError(
                f"NFMNetwork: channels must have one value for each of {len(modules)} modules; "
                f"got {len(channels)}."
            )
        self.nfms = Passes(channels, **options)
        copies = 1 if self.nfms.share else len(self.nfms)
        last = nn.ModuleList(modules)
        self.stacks = nn.ModuleList([*(copy.deepcopy(last) for _ in range(copies - 1)), last])

    def forward(self, input: Tensor) -> Tensor:
        """Run all passes and return the output of the last."""
        memory: Memory = ()
        hidden = input
        for k, (one_pass, hidden) in enumerate(self.nfms.over(input)):
            stack = self.stacks[0 if self.nfms.share else k]
            assert isinstance(stack, nn.ModuleList)
            for place, module in enumerate(stack):
                hidden, memory = one_pass.call(place, module(hidden), memory)
        return hidden


def trunk(
    modules: Sequence[nn.Module], channels: Sequence[int], nfm: NFMOptions | None
) -> nn.Module:
    """Chain ``modules``, without NFM or with it.

    Args:
        modules: one after the other.
        channels: of the map that each of them returns.
        nfm: options of an :class:`NFMNetwork`; ``None`` for a plain ``nn.Sequential``.

    Example:
        >>> type(trunk([nn.Identity()], [4], None)).__name__
        'Sequential'
        >>> type(trunk([nn.Identity()], [4], {"passes": 1})).__name__
        'NFMNetwork'
    """
    return nn.Sequential(*modules) if nfm is None else NFMNetwork(modules, channels, **nfm)
