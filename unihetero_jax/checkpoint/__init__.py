"""Checkpoints: arrays in and out, checksums."""
