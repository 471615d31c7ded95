"""Watching agents and runs: recorded episodes, learning curves, live views."""
