"""The tokenizer of an imported dataset: trained on a sample of its texts, or copied."""

from __future__ import annotations

import heapq
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from unihetero_jax.tokenizer.loading import load_tokenizer
from unihetero_jax.tokenizer.sentencepiece import MARKERS, Tokenizer

# More texts do not improve a vocabulary of a few thousand pieces.
_TEXTS, _CHARACTERS = 20_000, 10_000_000
# A unit may contain more than its share of the sampled texts.
_SPARE, _LEAST = 4, 50


def sampled_texts(units: int) -> int:
    """Return how many texts to keep of each unit, so that the sample of all is a fair one."""
    return min(_TEXTS, max(_LEAST, -(-_SPARE * _TEXTS // units)))


def add_tokenizer(directory: Path, samples: Sequence[Path], vocabulary_size: int, tokenizer: str) -> None:
    """Add a tokenizer to a dataset that is being made, if one is wanted and there are texts to train it on.

    Args:
        directory: Directory of the dataset.
        samples: JSON files of (hash, text).
        vocabulary_size: Most pieces of a tokenizer to train; 0 trains none.
        tokenizer: File of a tokenizer to copy instead.

    Raises:
        UsageError: The tokenizer cannot be read or trained.
    """
    if tokenizer:
        shutil.copyfile(tokenizer, directory / load_tokenizer(tokenizer).FILE)
        return
    if not vocabulary_size:
        return
    texts = _sample(samples)
    if not any(text.strip() for text in texts):
        print("no tokenizer: the training records have no text")
        return
    Tokenizer.train(_without_rare(texts, vocabulary_size), directory / Tokenizer.FILE, vocabulary_size)


def _sample(samples: Sequence[Path]) -> list[str]:
    """Return the texts with the lowest hashes of all."""
    lowest: list[tuple[int, str]] = []
    for path in samples:
        found = [(word, text) for word, text in json.loads(path.read_text(encoding="utf-8"))]
        lowest = heapq.nsmallest(_TEXTS, [*lowest, *found])
    characters = _CHARACTERS
    texts = []
    for _, text in lowest:
        characters -= len(text)
        if characters < 0:
            break
        texts.append(text)
    return texts


def _without_rare(texts: Sequence[str], vocabulary_size: int) -> list[str]:
    """Remove the rarest characters, where they are so many that no pieces would be left for words.

    Characters that the vocabulary lacks are spelled in bytes.
    """
    counts = Counter(character for text in texts for character in text)
    most = (vocabulary_size - 256 - len(MARKERS) - 4) // 2
    common = {character for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]}
    absent = {ord(character): " " for character in counts if character not in common}
    return [text.translate(absent) for text in texts] if absent else list(texts)
