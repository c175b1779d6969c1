"""How well a model predicts plain text that has nothing to do with images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unihetero_jax.config.components import EVALUATORS, EvaluatorConfig
from unihetero_jax.config.constraints import FilePath
from unihetero_jax.data.packing.packed_batch import PackedBatch, RowShape, empty_batch
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate.base import Context, Result
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

TextLoss = Callable[[PackedBatch], tuple[float, float]]
"""Packed rows → Σ cross-entropy (nats) of their text, and how many tokens it is of."""


@dataclass(frozen=True)
class PerplexityConfig(EvaluatorConfig):
    """Perplexity of a text.

    Attributes:
      text: a file of documents: of ``.jsonl`` the ``text`` of each line, else separated by empty lines.
    """

    text: FilePath = ""

    def check(self, key: str) -> None:
        """Refuse an evaluator without a text."""
        if not self.text:
            raise UsageError(f"{key}.text is empty: expected a file of text")

    def check_files(self, key: str) -> None:
        """Refuse a text that cannot be read."""
        documents(Path(self.text), f"{key}.text")


@EVALUATORS.register("perplexity", config=PerplexityConfig)
def evaluate(config: PerplexityConfig, context: Context) -> Result:
    """Measure the perplexity of the configured text."""
    data = context.config.data
    sizes = data.seq_len, data.image_size, context.options.batch_size
    found = measure(context.predictor.text, documents(Path(config.text)), context.predictor.tokenizer, *sizes)
    lines = [f"  {name.replace('_', ' '):<20}{value:>9,.6g}" for name, value in found.items()]
    return Result(found, ["text", *lines])


def documents(path: Path, key: str = "text") -> list[str]:
    """The documents of a file.

    Args:
      path: the file.
      key: the config key that names it, for error messages.

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
        raise UsageError(f"{key}={path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{key}={path}: expected text in UTF-8: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f'{key}={path}: expected a line of JSON with "text" for each document: {error!r}') from error
    if not found:
        raise UsageError(f"{key}={path}: expected text, but there is none")
    return found


def measure(
    text_loss: TextLoss, texts: Sequence[str], tokenizer: Tokenizer, slots: int, image_size: int, batch_size: int
) -> dict[str, float]:
    """Measure the perplexity of documents, each from its beginning, in windows that overlap by one token.

    Args:
      text_loss: the predict function.
      texts: the documents.
      tokenizer: of the model.
      slots: length of a window, in tokens.
      image_size: of the model's images, of which there are none here.
      batch_size: rows at a time.

    Returns:
      ``perplexity``, exp of the mean cross-entropy per token, the end of a document included; ``bits_per_token``;
      ``bits_per_byte`` of UTF-8, by which models with other tokenizers can be compared; ``tokens``; ``documents``.
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
