"""Experiments of the papers: data, models and training."""
