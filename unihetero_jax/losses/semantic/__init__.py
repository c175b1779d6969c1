"""Autoregression of semantic visual embeddings."""
