"""Programs that make what documents quote."""
