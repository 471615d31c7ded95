"""Parsing of command lines: options, lists, and one line for a mistake."""
