"""A trained model with everything that prediction needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from unihetero_jax.config import Config
from unihetero_jax.parallel.module_definition import ModelDefinition, Params
from unihetero_jax.tokenizer.sentencepiece import Tokenizer


@dataclass(frozen=True)
class Trained:
    """A trained model, ready for prediction."""

    config: Config
    model: ModelDefinition
    params: Params
    tokenizer: Tokenizer
    step: int
    mesh: Mesh
    data_root: Path
