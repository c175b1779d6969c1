"""The ``dinov2`` tower."""
