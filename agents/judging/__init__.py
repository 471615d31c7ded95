"""Evaluation of agents, and comparisons of cores over seeds."""
