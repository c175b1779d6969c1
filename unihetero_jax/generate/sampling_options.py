"""How tokens and codes are sampled, and how much is generated: plain data, for command lines without JAX."""

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
    """The part of a ``Choice`` that decides which program is compiled; numbers that enter its arithmetic are left out.

    Attributes:
      sampled: sample, or take the likeliest.
      top_k: sample among so many of the likeliest; 0: all.
      nucleus: whether top-p is used.
    """

    sampled: bool
    top_k: int
    nucleus: bool


@dataclass(frozen=True)
class Choice:
    """How a token or code is chosen.

    Attributes:
      temperature: divisor of the logits; 0 takes the likeliest.
      top_k: sample among so many of the likeliest; 0: all.
      top_p: sample among the fewest whose probabilities, after the two before, add up to it (arXiv 1904.09751); 1: all.
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

    Attributes:
      text: how tokens are chosen.
      codes: how codes are chosen, where images are made of codes.
      guidance: classifier-free guidance of images away from the prediction without the user's text; 1: none; None: as
        a diffusion head that generates latents is configured, and none without such a head.
      pixel_guidance: the same of a diffusion head that turns embeddings into pixels, away from its null condition;
        None: as configured.
      seed: of all random numbers.
      max_tokens: most tokens of text.
      max_images: most images.
      require_image: a request that would end without an image begins one.
      stop_ids: tokens that end the answer, besides the tokenizer's own.
      stop_texts: the answer is cut before the first of these.
    """

    text: Choice = field(default_factory=Choice)
    codes: Choice = field(default_factory=lambda: Choice(temperature=1.0))
    guidance: float | None = None
    pixel_guidance: float | None = None
    seed: int = 0
    max_tokens: int = 128
    max_images: int = 1
    require_image: bool = False
    stop_ids: tuple[int, ...] = ()
    stop_texts: Sequence[str] = ()


def validate(sampling: Sampling) -> None:
    """Refuse settings that cannot work.

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
    _expect(sampling.max_images >= sampling.require_image, "max_images", sampling, "1 or more with require_image")
    texts = sampling.stop_texts
    # A string alone is a sequence of texts too: of its letters.
    _expect(not isinstance(texts, str), "stop_texts", sampling, "a list or tuple of texts")
    _expect(all(texts), "stop_texts", sampling, "no empty text")


def _expect(right: bool, name: str, owner: object, expected: str) -> None:
    if not right:
        value = getattr(owner, name.rpartition(".")[2])
        raise UsageError(f"sampling.{name}={value!r}: expected {expected}")
