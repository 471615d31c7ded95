"""Machine code for the CPU: vectors, compilation on first use, threads."""
