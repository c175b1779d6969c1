"""Importers: one file or folder for each format that can become a stored dataset."""
