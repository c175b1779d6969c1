"""The tokenizer of an imported dataset: trained on a sample of its texts, or copied."""

from __future__ import annotations

import heapq
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from unihetero_jax.data.records.manifest import TOKENIZER_FILE
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import MARKERS, Tokenizer

# More texts teach a vocabulary of a few thousand pieces nothing.
_TEXTS, _CHARACTERS = 20_000, 10_000_000
# A unit may hold more than its share of the texts that hash lowest.
_SPARE, _LEAST = 4, 50
_LEAST_VOCABULARY = 512


def sampled_texts(units: int) -> int:
    """Texts to keep of each unit, so that the sample of all is a fair one."""
    return min(_TEXTS, max(_LEAST, -(-_SPARE * _TEXTS // units)))


def check_tokenizer(vocabulary_size: int, tokenizer: str) -> None:
    """Refuses early what would be impossible late.

    Raises:
        UsageError: The vocabulary is too small, or the file is no tokenizer.
    """
    if vocabulary_size and not _LEAST_VOCABULARY <= vocabulary_size <= 1 << 20:
        raise UsageError(
            f"vocabulary_size={vocabulary_size} is impossible: expected {_LEAST_VOCABULARY} to {1 << 20:,}, "
            "or 0 for no tokenizer"
        )
    if tokenizer:
        _load(tokenizer)


def add_tokenizer(directory: Path, samples: Sequence[Path], vocabulary_size: int, tokenizer: str) -> None:
    """Puts a tokenizer into a dataset that is being made, if one is wanted and there are texts to train it on.

    Args:
        directory: Of the dataset.
        samples: JSON files of (hash, text).
        vocabulary_size: Most pieces of one to train; 0 trains none.
        tokenizer: One to copy instead.

    Raises:
        UsageError: It cannot be read, or trained.
    """
    if tokenizer:
        json_file = isinstance(_load(tokenizer), _json_tokenizer())
        shutil.copyfile(tokenizer, directory / ("tokenizer.json" if json_file else TOKENIZER_FILE))
        return
    if not vocabulary_size:
        return
    texts = _sample(samples)
    if not any(text.strip() for text in texts):
        print("no tokenizer: the training records have no text")
        return
    Tokenizer.train(_within(texts, vocabulary_size), directory / TOKENIZER_FILE, vocabulary_size)


def _load(path: str) -> Tokenizer:
    return _json_tokenizer().load(path) if path.endswith(".json") else Tokenizer.load(path)


def _json_tokenizer() -> type[Tokenizer]:
    from unihetero_jax.tokenizer.tokenizer_json import JsonTokenizer

    return JsonTokenizer


def _sample(samples: Sequence[Path]) -> list[str]:
    """The texts that hash lowest of all."""
    kept: list[tuple[int, str]] = []
    for path in samples:
        found = [(word, text) for word, text in json.loads(path.read_text(encoding="utf-8"))]
        kept = heapq.nsmallest(_TEXTS, [*kept, *found])
    room = _CHARACTERS
    texts = []
    for _, text in kept:
        room -= len(text)
        if room < 0:
            break
        texts.append(text)
    return texts


def _within(texts: Sequence[str], vocabulary_size: int) -> list[str]:
    """The texts without the rarest characters, where there are so many that no room would be left for words.

    What the vocabulary lacks is spelled in bytes.
    """
    counts = Counter(character for text in texts for character in text)
    most = (vocabulary_size - 256 - len(MARKERS) - 4) // 2
    common = {character for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]}
    absent = {ord(character): " " for character in counts if character not in common}
    return [text.translate(absent) for text in texts] if absent else list(texts)
