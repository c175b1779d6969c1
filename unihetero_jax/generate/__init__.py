"""Cached decoding of text and of visual embeddings; predictions and pictures."""
