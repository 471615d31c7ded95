"""Search over hyperparameters: definition, trials, report."""
