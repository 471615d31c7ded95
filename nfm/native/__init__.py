"""Attention over slots as machine code for the CPU, compiled by Numba on first use."""
