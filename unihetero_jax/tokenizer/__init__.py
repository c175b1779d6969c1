"""Tokenizers: SentencePiece and ``tokenizer.json``, with the image markers."""
