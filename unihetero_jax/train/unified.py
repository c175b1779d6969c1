"""The unified model under training: its losses, groups, LoRA base and moving-average teacher."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from unihetero_jax.config import Config, starts_from_weights, target_adapter, target_tower
from unihetero_jax.errors import UsageError
from unihetero_jax.losses import base as losses
from unihetero_jax.losses.base import Loss
from unihetero_jax.model import flops, groups, lora_base
from unihetero_jax.model.attention.base import chosen, refused
from unihetero_jax.model.unified import Encoded, UnifiedModel
from unihetero_jax.parallel import paths
from unihetero_jax.parallel.definition import ModelDefinition, Params
from unihetero_jax.parallel.gathering import gather_singles
from unihetero_jax.parallel.mesh import check_mesh
from unihetero_jax.train.initial_weights import start_from
from unihetero_jax.train.learner import Batch, Learner, Scalars
from unihetero_jax.train.state import make_optimizer

# Gathered where they are used, if at all: looking up tokens needs no whole table.
_LARGE = ("decoder.embedding", "decoder.head")


@dataclass(frozen=True)
class UnifiedLearner(Learner):
    """Trains what ``config.model`` describes by ``config.losses``."""

    config: Config
    model: ModelDefinition[UnifiedModel]

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses with a weight."""
        return tuple(loss.name for loss in self._losses)

    @functools.cached_property
    def _losses(self) -> tuple[Loss[Any], ...]:
        return losses.make_losses(self.config.losses)

    def totals(self, batch: Batch) -> Scalars:
        """Σ weight of each loss over a whole batch."""
        return losses.total_weights(self._losses, batch)

    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """Σ weight · loss of each loss over some rows, teacher-forced, and monitors."""
        settings = self.config.model
        bound = self.model.bind(params, key if settings.lora.dropout else None)
        gather_singles(bound, mesh, _LARGE)
        return losses.loss_sums(
            self._losses,
            bound,
            batch,
            teacher=self._see(params, ema, batch, mesh),
            key=key,
            dropout=settings.decoder.dropout > 0,
            mesh=mesh,
        )

    def _see(self, params: Params, ema: Params, batch: Batch, mesh: Mesh | None) -> Encoded | None:
        """What the moving-average tower and adapter make of the images to be drawn; None without them."""
        if not ema:
            return None
        bound = self.model.bind(paths.join(params, ema))
        gather_singles(bound, mesh, _LARGE)
        return bound.encode_targets(batch, mesh)

    def metrics(self, monitors: Any, sums: Scalars, totals: Scalars) -> Scalars:
        """What the losses report besides themselves."""
        del sums, totals
        return losses.metrics(self._losses, monitors)

    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """The loss of a step, or a part of the batch's share of it."""
        return losses.combine(self._losses, step, sums, totals)

    def work(self) -> Sequence[flops.Part]:
        """By our count; the table's rows are those that the model has, padded ones included."""
        table = self.model.shapes()["decoder"]["embedding"]
        # Of the devices that are here: what counts is the same for all, what the program does is not.
        return flops.step_parts(
            self.config, table.shape[0], chosen(self.config, None), max(self.config.mesh.context, 1)
        )

    @property
    def precise(self) -> bool:
        """Whether the decoder computes in float32."""
        return self.config.model.decoder.dtype == "float32"

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW by groups."""
        return make_optimizer(
            self.config.optimizer, self.config.train.steps, partial(groups.settings, self.config.optimizer)
        )

    def initial_params(self) -> Params:
        """The parameters before the first step, the frozen ones in the type that they are held in."""
        return lora_base.initial_params(self.config, self.model)

    def split(self, params: Params) -> tuple[Params, Params]:
        """(trained, frozen) parts by the config's groups."""
        return groups.split(self.config, params)

    def averaged(self, trained: Params) -> Params:
        """Tower and adapter, when the semantic targets come from their average: what is frozen is shared."""
        if self._teacher_decay is None:
            return {}
        parts = target_tower(self.config.model), target_adapter(self.config.model)
        return {name: trained[name] for name in parts if name in trained}

    def layers(self, trained: Params) -> Params:
        """The decoder's layers, where they are trained themselves."""
        found = trained.get("decoder", {}).get("layers")
        return {"decoder": {"layers": found}} if found else {}

    @property
    def ema_decay(self) -> float:
        """Of the teacher."""
        return self._teacher_decay or 0.0

    @property
    def _teacher_decay(self) -> float | None:
        decays = (loss.teacher_decay for loss in self.config.losses.values())
        return next((decay for decay in decays if decay is not None), None)

    def check(self, mesh: Mesh) -> None:
        """Refuses a mesh that the model cannot be split over, and attention that cannot be had for it."""
        check_mesh(mesh, self.config)
        decoder = self.config.model.decoder
        if reason := refused(decoder.attention, mesh, self.config.data.slots, decoder.head_dim, decoder.dtype):
            raise UsageError(
                f"config.model.decoder.attention={decoder.attention!r} {reason}; 'auto' takes what can be had"
            )

    def start(self, params: Params, mesh: Mesh) -> Params:
        """Initial parameters with what ``config.init`` names."""
        return start_from(self.config, self.model, params, mesh) if starts_from_weights(self.config) else params

    @property
    def partial(self) -> bool:
        """With LoRA the base is left out."""
        return bool(self.config.model.lora.rank)

    def base(self, params: Params) -> dict[str, str] | None:
        """Source and digest of LoRA's base."""
        return lora_base.identify(self.config, params)

    def complete(self, stored: Params, base_of: Mapping[str, str], path: Path, mesh: Mesh) -> Params:
        """The factors and what else was trained, with LoRA's base, which is made again."""
        start = partial(self.start, mesh=mesh) if starts_from_weights(self.config) else None
        return lora_base.with_base(self.config, self.model, mesh, stored, base_of, path, start)
