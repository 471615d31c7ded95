"""What the runs of an experiment amount to: comparisons, tables, figures and pictures."""
