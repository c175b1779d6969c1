"""The ``patch`` tower."""
