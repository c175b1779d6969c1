"""The attribute classifier of Smart Watch images."""
