"""Settings of the text loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unihetero_jax.config.components import LOSSES, LossConfig, Part
from unihetero_jax.config.constraints import NonNegativeFloat, NonNegativeInt
from unihetero_jax.errors import UsageError


@LOSSES.section("text")
@dataclass(frozen=True)
class TextLossConfig(LossConfig):
    """Cross-entropy of the next token.

    Attributes:
      z_loss: factor on the squared log-partition (PaLM, arXiv 2204.02311, section 5).
      chunk: slots of a row whose logits exist at once; 0 means all of them.
    """

    z_loss: NonNegativeFloat = 0.0
    chunk: NonNegativeInt = 0

    def check_with(self, config: Any, key: str) -> None:
        """Refuse a chunk that does not divide the sequence."""
        if self.chunk and config.data.seq_len % self.chunk:
            raise UsageError(f"{key}.chunk={self.chunk} does not divide config.data.seq_len={config.data.seq_len}")

    def work(self, config: Any, vocabulary: int, embeddings_trained: bool) -> list[Part]:
        """Count the output head's FLOPs; it is computed again in the backward pass where it is chunked."""
        chunked = 0 < self.chunk < config.data.seq_len
        tokens = config.train.batch_size * config.data.seq_len
        head = 2.0 * config.model.decoder.width * vocabulary
        return [Part("text head", tokens * head, 2.0 if embeddings_trained else 1.0, float(chunked))]
