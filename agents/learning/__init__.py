"""One training run: collecting, learning, saving, going on."""
