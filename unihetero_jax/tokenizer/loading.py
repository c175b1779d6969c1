"""Find and load a tokenizer of either kind."""

from __future__ import annotations

import os
from pathlib import Path

from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.tokenizer.tokenizer_json import JsonTokenizer


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the tokenizers in a folder: ``tokenizer.model`` first, then ``tokenizer.json``."""
    return [folder / kind.FILE for kind in (Tokenizer, JsonTokenizer) if (folder / kind.FILE).is_file()]


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a SentencePiece model or a ``tokenizer.json``.

    Args:
        path: The file. Of a SentencePiece model that does not exist, the ``tokenizer.json`` beside it is read instead.

    Raises:
        UsageError: The file is missing, cannot be read, or is not a tokenizer.
    """
    file = Path(path)
    beside = file.with_name(JsonTokenizer.FILE)
    if not file.exists() and beside.exists():
        file = beside
    return (JsonTokenizer if file.suffix == ".json" else Tokenizer).load(file)
