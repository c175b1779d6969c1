"""Pixels → features, one file a tower."""
