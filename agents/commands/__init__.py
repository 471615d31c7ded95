"""The commands of ``rims``, a file each: they parse, check and call; nothing is computed here.

torch takes over a second to import, so modules that need it are imported inside the commands.
"""
