"""The ``clip`` tower."""
