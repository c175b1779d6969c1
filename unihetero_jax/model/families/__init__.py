"""Decoder families of the Hugging Face hub, found by the ``model_type`` of a config.json."""
