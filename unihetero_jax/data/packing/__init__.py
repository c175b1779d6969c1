"""Samples to packed batches: row streams and their workers."""
