"""Importers: from anyone's files to shards of records (see `unihetero_jax.data.record`)."""
