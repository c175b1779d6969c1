"""Stored records: shards, splits, images and texts."""
