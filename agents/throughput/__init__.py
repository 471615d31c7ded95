"""How fast agents train: ours with each core, and sb3-contrib's RecurrentPPO beside them."""
