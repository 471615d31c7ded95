"""What runs amount to, shown: intervals, figures, tables, pictures, the terminal."""
