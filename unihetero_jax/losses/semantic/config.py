"""Settings of the semantic loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unihetero_jax.config.components import LOSSES, LossConfig, Part
from unihetero_jax.config.constraints import Fraction, NonNegativeFloat, NonNegativeInt
from unihetero_jax.config.sections import frozen_groups, frozen_towers, target_adapter, target_tower
from unihetero_jax.config.towers import target_width, visual_places
from unihetero_jax.errors import UsageError


@LOSSES.section("semantic")
@dataclass(frozen=True)
class SemanticLossConfig(LossConfig):
    """Autoregression of semantic visual embeddings.

    Attributes:
      weight: factor on the loss; with a ramp the one at its end.
      initial_weight: the factor at the first step of a ramp.
      ramp_steps: steps over which the factor goes linearly from ``initial_weight`` to ``weight``; 0: no ramp.
      target: what is predicted: ``input_embedding``, after the adapter (UniHetero), or ``encoder_output``, before it.
      loss: ``cosine`` is 1 − cos; ``mse`` and ``smooth_l1`` are means over channels.
      target_gradient: ``stop`` detaches the targets; ``ema`` takes them from an exponential moving average of tower and
        adapter; ``through`` lets the gradient into them.
      ema_decay: decay of that average per step.
      head: ``linear`` (paper B) or ``mlp``.
    """

    generates: ClassVar[str] = "semantic"

    weight: NonNegativeFloat = 0.3
    initial_weight: NonNegativeFloat = 0.0
    ramp_steps: NonNegativeInt = 0
    target: Literal["input_embedding", "encoder_output"] = "input_embedding"
    loss: Literal["cosine", "mse", "smooth_l1"] = "cosine"
    target_gradient: Literal["stop", "ema", "through"] = "stop"
    ema_decay: Fraction = 0.999
    head: Literal["linear", "mlp"] = "mlp"

    @property
    def teacher_decay(self) -> float | None:
        """Decay of the moving average that gives the targets; None where they are not averaged."""
        return self.ema_decay if self.target_gradient == "ema" else None

    def without_teacher(self) -> SemanticLossConfig:
        """Return the same loss with the model's own targets."""
        return dataclasses.replace(self, target_gradient="stop")

    def check_with(self, config: Any, key: str) -> None:
        """Refuse another kind of visual slot, an average of what does not learn, and directions without a length."""
        model = config.model
        if model.generation != self.generates:
            raise UsageError(
                f"{key}.weight={self.weight} with config.model.generation={model.generation!r}: set "
                f"generation='semantic', or set {key.removeprefix('config.')}.weight=0"
            )
        still = "adapters" in frozen_groups(config) and target_tower(model) in frozen_towers(config)
        if self.target_gradient == "ema" and still:
            raise UsageError(
                f"{key}.target_gradient='ema' with adapters and tower frozen: there is nothing to average; set "
                "target_gradient='stop', which is the same then"
            )
        adapter = target_adapter(model)
        switch = "normalize" if self.target == "input_embedding" else "normalize_input"
        if self.loss == "cosine" and not getattr(getattr(model, adapter), switch):
            raise UsageError(
                f"config.model.{adapter}.{switch}=False with {key}.loss='cosine' and target={self.target!r}: a "
                f"direction alone cannot be fed back; set {switch}=True or loss='mse'"
            )

    def work(self, config: Any, vocabulary: int, embeddings_trained: bool) -> list[Part]:
        """Count the head's FLOPs, at every visual token's place."""
        width = config.model.decoder.width
        size = width if self.target == "input_embedding" else target_width(config)
        hidden = width if self.head == "mlp" else 0
        return [Part("semantic head", 2.0 * visual_places(config) * ((width + size) * hidden or width * size), 2.0)]
