"""Stored records: shards, manifests, images and texts."""
