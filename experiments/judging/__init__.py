"""Results of an experiment's runs: comparisons, tables, figures and pictures."""
