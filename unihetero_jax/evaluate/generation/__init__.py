"""The evaluator of generated images."""
