"""Settings of the loss on visual codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unihetero_jax.config.components import LOSSES, LossConfig, Part
from unihetero_jax.config.constraints import NonNegativeFloat
from unihetero_jax.config.towers import code_count, visual_places
from unihetero_jax.errors import UsageError


@LOSSES.section("codes")
@dataclass(frozen=True)
class CodesLossConfig(LossConfig):
    """Cross-entropy of the next code of a generation tower with a codebook (LlamaGen's VQ-16 in paper B).

    Attributes:
      weight: factor on the loss; paper B's.
      head: ``linear`` (paper B) or ``mlp``.
    """

    generates: ClassVar[str] = "codes"

    weight: NonNegativeFloat = 0.2
    head: Literal["linear", "mlp"] = "linear"

    def check_with(self, config: Any, key: str) -> None:
        """Refuse another kind of visual slot."""
        if config.model.generation != self.generates:
            raise UsageError(
                f"{key}.weight={self.weight} with config.model.generation={config.model.generation!r}: set "
                "generation='codes'"
            )

    def work(self, config: Any, vocabulary: int, embeddings_trained: bool) -> list[Part]:
        """Count the head's FLOPs, at every visual token's place."""
        width, codes = config.model.decoder.width, code_count(config)
        hidden = width if self.head == "mlp" else 0
        return [Part("code head", 2.0 * visual_places(config) * ((width + codes) * hidden or width * codes), 2.0)]
