"""Shared by the decoder families."""
