"""Neural Function Modules (arXiv:2010.08012): layers that choose which earlier layers they read."""

from nfm.attention import Memory, MemoryEntry
from nfm.authors import load_authors_weights
from nfm.insertion import NFMInserted, insert
from nfm.module import NFM
from nfm.network import NFMNetwork, NFMOptions, trunk
from nfm.plots import plot_attention
from nfm.trace import Reading, Trace, random_attention, trace

__all__ = [
    "NFM",
    "Memory",
    "MemoryEntry",
    "NFMInserted",
    "NFMNetwork",
    "NFMOptions",
    "Reading",
    "Trace",
    "insert",
    "load_authors_weights",
    "plot_attention",
    "random_attention",
    "trace",
    "trunk",
]
