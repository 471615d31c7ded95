"""Vector environments on EnvPool and gymnasium, and environments of other people."""
