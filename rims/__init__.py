"""Recurrent Independent Mechanisms (arXiv:1909.10893) as drop-in recurrent layers for PyTorch."""

from rims.cells import RIM_GRUCell as RIM_GRUCell
from rims.cells import RIM_LSTMCell as RIM_LSTMCell
from rims.layers import RIM_GRU as RIM_GRU
from rims.layers import RIM_LSTM as RIM_LSTM
from rims.trace import Trace as Trace
from rims.trace import trace as trace

__all__ = ["RIM_GRU", "RIM_LSTM", "RIM_GRUCell", "RIM_LSTMCell", "Trace", "trace"]
