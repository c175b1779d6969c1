"""Optimizers, one file each. Only ``base`` imports JAX at once: the config tree reads the sections without it."""
