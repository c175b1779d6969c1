"""Text and token ids: SentencePiece and ``tokenizer.json``, with the image markers."""
