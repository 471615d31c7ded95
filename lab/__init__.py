"""Everything that training runs share, whatever they train; imports none of our other packages.

On disk: :mod:`lab.disk`. Processes, signals, devices, memory: :mod:`lab.running`. As jobs of a
cluster: :mod:`lab.slurm`. Intervals, figures, tables, the terminal: :mod:`lab.reporting`.
"""
