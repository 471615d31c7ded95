"""Agents and their runs to look at: episodes, curves, runs under way."""
