"""Showing results: intervals, figures, tables, pictures, the terminal."""
