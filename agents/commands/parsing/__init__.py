"""How commands read what was typed: options, lists, and one line for a mistake."""
