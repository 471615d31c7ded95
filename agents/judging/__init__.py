"""How good agents are: evaluation, and comparisons of cores over seeds."""
