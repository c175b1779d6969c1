"""Evaluators, which see only predict functions; and what they report."""
