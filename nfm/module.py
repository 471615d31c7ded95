"""The NFM layer: a map and the memory of earlier maps in, a new map and a longer memory out."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from nfm.attention import Memory, MemoryEntry, SlotRead
from nfm.fast import attend
from nfm.rescale import Rescale
from nfm.surroundings import refuse_checkpoint
from rims.functional import TopKRule

_CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class SlotAttention(nn.Module):
    """:func:`nfm.fast.attend` as a module, so that hooks can see what every point attended to.

    Attributes:
        random: in place of the scores, draw normal ones: what is left of a trained network when it
            does not choose (arXiv:2010.08012, section 4.4). Default false.
    """

    def __init__(
        self,
        num_heads: int,
        top_k: int | None,
        topk_rule: TopKRule,
        rescale: Rescale,
        null_slot: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.top_k = top_k
        self.topk_rule = topk_rule
        self.rescale = rescale
        self.null_slot = null_slot
        self.random = False

    def forward(self, query: Tensor, memory: Memory) -> SlotRead:
        """Read ``memory`` by ``query (B, M * dk, *size)``."""
        if self.random:
            refuse_checkpoint("random_attention", "attention without choice")
        return attend(
            query,
            memory,
            num_heads=self.num_heads,
            top_k=self.top_k,
            topk_rule=self.topk_rule,
            rescale=self.rescale,
            null_slot=self.null_slot,
            random_scores=self.random,
        )

    def extra_repr(self) -> str:
        """Text that ``print`` shows."""
        return (
            f"num_heads={self.num_heads}, top_k={self.top_k}, topk_rule={self.topk_rule!r}, "
            f"rescale={self.rescale!r}, null_slot={self.null_slot}"
        )


class NFM(nn.Module):
    r"""A Neural Function Module: a map reads, sparsely, the maps that were computed before it.

    .. math:: z = \big\Vert_{heads} \sum_s \mathrm{topk\,softmax}_s(q \cdot k_s / \sqrt{d_k})\, v_s,
              \qquad y = x + \gamma\, W_{o2} * \mathrm{ReLU}(\mathrm{BN}(W_{o1} * z))

    at every point (arXiv:2010.08012, Algorithm 1 and section 3.2.1; order of reading and writing as
    in its authors' code). First the module writes its own input into the memory (a key and a value
    at every point), then it reads all of the memory, itself included: other maps are brought to its
    size (:func:`nfm.rescale.to_slots`), and a null slot, zero key and value, lets a head read
    nothing. :math:`\gamma` is 0 at the start, so that a new module changes nothing.

    The memory is an argument and never changed in place; nothing of a call stays in the module.

    Args:
        channels: C of the map.
        key_size: d_k, features of a query or key, per head. Default 32.
        value_size: d_v, features of a value, per head. Default 32.
        num_heads: M. Default 4.
        top_k: slots that each head reads at each point; ``None`` reads all. Default 5.
        topk_rule: ``"softmax"`` (default) over the k largest scores, as the paper says, or the
            authors' ``"threshold"`` (:func:`rims.functional.threshold_softmax`).
        rescale: a larger map is read as all points of a window (``"space_to_depth"``, default) or
            as one of them (``"nearest"``).
        null_slot: whether there is a null slot. Default true.
        batch_norm: whether there is batch normalisation in the output block. Default true.
        out_kernel_size: of the two convolutions of the output block, odd. 3 (default) is that of
            the authors' code; 1 is the linear map of the paper.
        read: whether the module reads; if not, the map passes unchanged. Default true.
        write: whether the module writes. Default true.
        spatial_dims: axes of the map besides batch and channels: 1, 2 (default) or 3.

    Shape:
        ``(B, C, *size), memory -> (B, C, *size), memory``

    Raises:
        ValueError: for a size, rule or number of axes that cannot be.

    Example:
        >>> first, second = NFM(8), NFM(16)
        >>> x, memory = first(torch.zeros(2, 8, 6, 6))
        >>> y, memory = second(torch.zeros(2, 16, 3, 3), memory)
        >>> y.shape, len(memory)
        (torch.Size([2, 16, 3, 3]), 2)
    """

    def __init__(
        self,
        channels: int,
        *,
        key_size: int = 32,
        value_size: int = 32,
        num_heads: int = 4,
        top_k: int | None = 5,
        topk_rule: TopKRule = "softmax",
        rescale: Rescale = "space_to_depth",
        null_slot: bool = True,
        batch_norm: bool = True,
        out_kernel_size: int = 3,
        read: bool = True,
        write: bool = True,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        for name, count in (
            ("channels", channels),
            ("key_size", key_size),
            ("value_size", value_size),
            ("num_heads", num_heads),
            ("top_k", 1 if top_k is None else top_k),
        ):
            _require(count >= 1, name, "at least 1", count)
        _require(topk_rule in get_args(TopKRule), "topk_rule", get_args(TopKRule), topk_rule)
        _require(rescale in get_args(Rescale), "rescale", get_args(Rescale), rescale)
        _require(out_kernel_size % 2 == 1, "out_kernel_size", "odd", out_kernel_size)
        _require(spatial_dims in _CONV, "spatial_dims", "1, 2 or 3", spatial_dims)
        self.channels, self.spatial_dims = channels, spatial_dims
        self.reads, self.writes = read, write
        conv, norm = _CONV[spatial_dims], _NORM[spatial_dims]
        same = {"kernel_size": out_kernel_size, "padding": out_kernel_size // 2}
        if write:  # else these parameters would never get a gradient
            self.key = conv(channels, num_heads * key_size, 1)
            self.value = conv(channels, num_heads * value_size, 1)
        if read:
            self.query = conv(channels, num_heads * key_size, 1)
            self.attention = SlotAttention(num_heads, top_k, topk_rule, rescale, null_slot)
            self.out = nn.Sequential()
            self.out.add_module("conv1", conv(num_heads * value_size, channels, **same))
            if batch_norm:
                self.out.add_module("norm", norm(channels))
            self.out.add_module("act", nn.ReLU())
            self.out.add_module("conv2", conv(channels, channels, **same))
            self.gamma = nn.Parameter(torch.zeros(()))

    def forward(
        self, input: Tensor, memory: Memory = (), *, read: bool = True, write: bool = True
    ) -> tuple[Tensor, Memory]:
        """Write ``input``, then read; with nothing to read the map passes unchanged.

        ``read=False`` and ``write=False`` leave it out in this call, for a module that is used in
        passes of which not all do both.

        Raises:
            ValueError: for an input with another number of axes, such as an image without a batch.
        """
        if input.dim() != 2 + self.spatial_dims:  # a convolution would take it for a batch of one
            axes = ("X", "Y, X", "Z, Y, X")[self.spatial_dims - 1]
            raise ValueError(f"NFM: input must be (B, C, {axes}); got {tuple(input.shape)}.")
        # Copied for the gradient: the caller may change in place the input, and an output that is
        # the input.
        own = input.clone() if torch.is_grad_enabled() else input
        if write and self.writes:
            memory = (*memory, MemoryEntry(self.key(own), self.value(own)))
        if not (read and self.reads and memory):
            return input, memory
        read = self.attention(self.query(own), memory).read
        return own + self.gamma * self.out(read), memory

    def extra_repr(self) -> str:
        """Text that ``print`` shows."""
        return f"channels={self.channels}, read={self.reads}, write={self.writes}"


def _require(holds: bool, name: str, expected: object, value: object) -> None:
    if not holds:
        raise ValueError(f"NFM: {name} must be {expected}; got {value!r}.")
