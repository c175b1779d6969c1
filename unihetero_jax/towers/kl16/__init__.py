"""The ``kl16`` tower."""
