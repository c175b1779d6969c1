"""The ``vq16`` tower."""
