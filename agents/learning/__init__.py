"""One training run: collecting, learning, saving, resuming."""
