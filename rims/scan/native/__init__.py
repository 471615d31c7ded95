"""The recurrent part of a sequence as machine code for the CPU, compiled by Numba on first use."""
