"""The commands of ``rims experiment``; they are part of ``cli``, as those of the agents are."""
