"""A run on disk: its folder and one writer, table and events, checkpoints, whole files."""
