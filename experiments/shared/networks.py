"""Translates settings of an experiment into options of Neural Function Modules."""

from __future__ import annotations

from experiments.configs.base import NFMConfig
from nfm.network import NFMOptions


def nfm_options(config: NFMConfig) -> NFMOptions:
    """The options of a network's modules.

    Example:
        >>> options = nfm_options(NFMConfig(passes=2, first_pass_reads=False, top_k=0))
        >>> options["read"], options["top_k"]
        ((False, True), None)
    """
    later = config.passes - 1
    return {
        "passes": config.passes,
        "share": config.share_parameters,
        "read": (config.first_pass_reads, *[True] * later),
        "key_size": config.key_size,
        "value_size": config.value_size,
        "num_heads": config.num_heads,
        "top_k": config.top_k or None,
        "topk_rule": config.topk_rule,
        "rescale": config.rescale,
        "null_slot": config.null_slot,
        "batch_norm": config.batch_norm,
        "out_kernel_size": config.out_kernel_size,
    }
