"""Recurrent PPO on MiniGrid tasks: training, evaluation, comparison.

The work is in the modules; start at :mod:`agents.learning.train`. Importing this package
imports no torch.
"""

from agents.config import PPOConfig as PPOConfig

__all__ = ["PPOConfig"]
