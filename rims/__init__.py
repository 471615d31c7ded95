"""Recurrent Independent Mechanisms (arXiv:1909.10893) as drop-in recurrent layers for PyTorch."""

from rims import authors as authors
from rims.cells import RIM_GRUCell as RIM_GRUCell
from rims.cells import RIM_LSTMCell as RIM_LSTMCell
from rims.layers import RIM_GRU as RIM_GRU
from rims.layers import RIM_LSTM as RIM_LSTM
from rims.layout.batching import RepeatedInput as RepeatedInput
from rims.plots import plot_activations as plot_activations
from rims.scan import scan_path as scan_path
from rims.trace import Trace as Trace
from rims.trace import Usage as Usage
from rims.trace import trace as trace

__all__ = [
    "RIM_GRU",
    "RIM_LSTM",
    "RIM_GRUCell",
    "RIM_LSTMCell",
    "RepeatedInput",
    "Trace",
    "Usage",
    "authors",
    "plot_activations",
    "scan_path",
    "trace",
]
