"""Checkpoints: writing, restoring and checking them."""
