"""The ``pixels`` tower."""
