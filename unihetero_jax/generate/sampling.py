"""How tokens and codes are chosen, and how much is generated; plain data, which a command line can hold without jax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from unihetero_jax.errors import UsageError

_WORDS = 2**32  # random keys are folded with unsigned words of 32 bits
_COLDEST = 1e-3  # below, logits that are divided by it leave the range of float32


class Rule(NamedTuple):
    """What of a choice decides which program is compiled; numbers that only enter its arithmetic are left out."""

    sampled: bool
    top_k: int
    nucleus: bool


@dataclass(frozen=True)
class Choice:
    """How one of several is chosen.

    ``temperature``: what logits are divided by; 0 takes the likeliest. ``top_k``: only so many of the likeliest; 0:
    all. ``top_p``: only the fewest whose probabilities, after the two before, add up to it (arXiv 1904.09751); 1: all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def rule(self) -> Rule:
        """The part that is compiled in."""
        sampled = self.temperature > 0
        return Rule(sampled, self.top_k if sampled else 0, sampled and self.top_p < 1)

    @property
    def numbers(self) -> np.ndarray:
        """Temperature and top-p, [2] float32."""
        return np.asarray([self.temperature, self.top_p], np.float32)


@dataclass(frozen=True)
class Sampling:
    """What is generated for a request.

    ``text``: how tokens are chosen. ``codes``: how codes are, where pictures are made of codes. ``guidance``: how far
    predictions of pictures are led away from what is predicted without the user's words; 1: not at all; None: as a
    diffusion head that draws latents is configured, and not at all without one. ``pixel_guidance``: the same of a
    diffusion head that makes pixels of drawn embeddings, away from its null condition; None: as configured. ``seed``:
    of everything random. ``max_tokens``: of text, most. ``max_images``: most pictures. ``must_draw``: a request that
    would end without a picture draws one. ``stop_ids``: tokens that end the answer, besides the tokenizer's own.
    ``stop_texts``: the answer is cut before the first of these, and ends a few tokens behind it.
    """

    text: Choice = field(default_factory=Choice)
    codes: Choice = field(default_factory=lambda: Choice(temperature=1.0))
    guidance: float | None = None
    pixel_guidance: float | None = None
    seed: int = 0
    max_tokens: int = 128
    max_images: int = 1
    must_draw: bool = False
    stop_ids: tuple[int, ...] = ()
    stop_texts: Sequence[str] = ()


def validate(sampling: Sampling) -> None:
    """Refuses settings that cannot work.

    Raises:
      UsageError: naming the setting and what was expected.
    """
    for name in ("text", "codes"):
        choice: Choice = getattr(sampling, name)
        warm = _COLDEST <= choice.temperature < math.inf
        _expect(choice.temperature == 0 or warm, f"{name}.temperature", choice, f"0, or {_COLDEST} or more")
        _expect(choice.top_k >= 0, f"{name}.top_k", choice, "1 or more, or 0 for all")
        _expect(0 < choice.top_p <= 1, f"{name}.top_p", choice, "above 0, at most 1")
    for name in ("guidance", "pixel_guidance"):
        guidance: float | None = getattr(sampling, name)
        _expect(guidance is None or (math.isfinite(guidance) and guidance >= 0), name, sampling, "0 or more")
    _expect(0 <= sampling.seed < _WORDS, "seed", sampling, f"0 to {_WORDS - 1}")
    _expect(sampling.max_tokens >= 1, "max_tokens", sampling, "1 or more")
    _expect(sampling.max_images >= 0, "max_images", sampling, "0 or more")
    _expect(sampling.max_images >= sampling.must_draw, "max_images", sampling, "1 or more with must_draw")
    texts = sampling.stop_texts
    # A string alone is a sequence of texts too: of its letters.
    _expect(not isinstance(texts, str), "stop_texts", sampling, "a list or tuple of texts")
    _expect(all(texts), "stop_texts", sampling, "no empty text")


def _expect(right: bool, name: str, owner: object, expected: str) -> None:
    if not right:
        value = getattr(owner, name.rpartition(".")[2])
        raise UsageError(f"sampling.{name}={value!r}: expected {expected}")
