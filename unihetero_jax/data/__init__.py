"""From records to packed batches. Nothing in this package of ours uses jax."""
