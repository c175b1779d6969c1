"""Packing: from samples to rows of packed batches, in threads or worker processes."""
