"""Diffusion or flow on pixel latents."""
