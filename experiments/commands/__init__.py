"""The commands of ``rims experiment``; they are part of ``cli``, like the commands of agents."""
