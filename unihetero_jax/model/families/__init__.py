"""Decoder families of the Hugging Face hub."""
