"""Search over hyperparameters: what is asked for, the trials, what they show."""
