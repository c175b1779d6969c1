"""Cross-entropy of the next token."""
