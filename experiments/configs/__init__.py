"""Settings of all tasks. Importing them imports no torch."""
