"""Vector environments over EnvPool and Gymnasium, and what environments of other people may be."""
