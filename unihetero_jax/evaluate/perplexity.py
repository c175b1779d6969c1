"""How well a model predicts plain text that has nothing to do with pictures.

T slots of a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from unihetero_jax.data.packing.packed_batch import PackedBatch, RowShape, empty_batch
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

TextLoss = Callable[[PackedBatch], tuple[float, float]]
"""Packed rows → Σ cross-entropy (nats) of their text, and how many tokens it is of."""


def documents(path: Path) -> list[str]:
    """The documents of a file: of ``.jsonl`` the ``text`` of each line, else what stands between empty lines.

    Raises:
      UsageError: it cannot be read, or there is no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            found = [json.loads(line)["text"] for line in text.splitlines() if line.strip()]
        else:
            found = text.split("\n\n")
        found = [document.strip() for document in found if document.strip()]
    except OSError as error:
        raise UsageError(f"config.evaluate.perplexity={path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"config.evaluate.perplexity={path}: expected text in UTF-8: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f'config.evaluate.perplexity={path}: expected a line of JSON with "text" for each document: {error!r}'
        ) from error
    if not found:
        raise UsageError(f"config.evaluate.perplexity={path}: expected text, but there is none")
    return found


def evaluate(
    text_loss: TextLoss, texts: Sequence[str], tokenizer: Tokenizer, slots: int, image_size: int, batch_size: int
) -> dict[str, float]:
    """The perplexity of documents, each from its beginning, in windows of a row's length that overlap by one token.

    Args:
      text_loss: the predict function.
      texts: documents.
      tokenizer: of the model.
      slots: T.
      image_size: of the model's pictures, of which there are none here.
      batch_size: rows at a time.

    Returns:
      ``perplexity``, exp of the mean cross-entropy of a token, the end of a document included; ``bits_per_token``;
      ``bits_per_byte`` of UTF-8, which models with other tokenizers can be compared by; ``tokens``; ``documents``.
    """
    windows = [window for text in texts for window in _windows(text, tokenizer, slots)]
    size = min(batch_size, len(windows))
    total = count = 0.0
    for start in range(0, len(windows), size):
        loss, tokens = text_loss(_batch(windows[start : start + size], size, slots, image_size))
        total, count = total + loss, count + tokens
    mean, length = total / count, sum(len(text.encode()) for text in texts)
    return {
        # Beyond this exp has no number; a mean so large is a broken model's.
        "perplexity": math.exp(min(mean, 700.0)),
        "bits_per_token": mean / math.log(2),
        "bits_per_byte": total / math.log(2) / length,
        "tokens": int(count),
        "documents": len(texts),
    }


def _windows(text: str, tokenizer: Tokenizer, slots: int) -> Iterator[list[int]]:
    """Every token but the first of all is predicted once: the last of a window is the first of the next."""
    ids = [tokenizer.begin_id, *tokenizer.encode(text), tokenizer.end_id]
    for start in range(0, len(ids) - 1, slots - 1):
        yield ids[start : start + slots]


def _batch(windows: Sequence[list[int]], rows: int, slots: int, image_size: int) -> PackedBatch:
    batch = empty_batch(rows, RowShape(slots, 1, image_size))
    for row, ids in enumerate(windows):
        here = np.s_[row, : len(ids)]
        batch["tokens"][here] = ids
        batch["segment"][here] = 1
        batch["position"][here] = np.arange(len(ids))
        batch["text_weight"][here] = 1
        batch["text_weight"][row, 0] = 0
    return batch
