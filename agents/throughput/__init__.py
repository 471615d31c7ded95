"""Training speed of agents: ours with each core, and sb3-contrib's RecurrentPPO."""
