"""The ``siglip`` tower."""
