"""Regression of pixel latents."""
