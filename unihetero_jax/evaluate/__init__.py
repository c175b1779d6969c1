"""Evaluators: each a component in a file or folder of its own, which sees only predict functions and data."""
