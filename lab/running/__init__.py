"""Processes, devices and memory of a run, and the signals and checks that end it."""
