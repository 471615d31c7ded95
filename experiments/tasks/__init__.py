"""The tasks of ``rims experiment``, a file each."""
