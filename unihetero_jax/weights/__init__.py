"""Hugging Face and torch files ↔ our parameters."""
