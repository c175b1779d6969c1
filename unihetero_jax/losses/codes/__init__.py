"""Cross-entropy of the next visual code."""
