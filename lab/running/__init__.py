"""How a run is under way: processes, devices, memory, and what ends it."""
