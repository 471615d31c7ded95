"""What machine code for the CPU is made of: vectors, compilation on first use, threads."""
