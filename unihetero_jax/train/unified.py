"""Learner of the unified model: its losses, parameter groups, LoRA base and moving-average teacher."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from unihetero_jax.config import Config, ParameterGroupConfig, starts_from_weights, target_adapter, target_tower
from unihetero_jax.errors import UsageError
from unihetero_jax.losses import base as loss_base
from unihetero_jax.model import flops, groups, lora_base
from unihetero_jax.model.attention.base import chosen, refused
from unihetero_jax.model.initial_weights import start_from
from unihetero_jax.model.unified import Encoded, UnifiedModel
from unihetero_jax.parallel import parameter_paths
from unihetero_jax.parallel.gathering import gather_singles
from unihetero_jax.parallel.mesh import check_mesh
from unihetero_jax.parallel.module_definition import ModelDefinition, Params
from unihetero_jax.train.learner import Batch, Learner, Scalars

# Not gathered with the rest: looking up tokens does not need the whole table.
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
    def _losses(self) -> tuple[loss_base.Loss[Any], ...]:
        return loss_base.make_losses(self.config.losses)

    def totals(self, batch: Batch) -> Scalars:
        """Return Σ weight of each loss over a whole batch."""
        return loss_base.total_weights(self._losses, batch)

    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """Compute Σ weight · loss of each loss over some rows, teacher-forced, and monitors."""
        settings = self.config.model
        bound = self.model.bind(params, key if settings.lora.dropout else None)
        gather_singles(bound, mesh, _LARGE)
        return loss_base.loss_sums(
            self._losses,
            bound,
            batch,
            teacher=self._encode_targets(params, ema, batch, mesh),
            key=key,
            dropout=settings.decoder.dropout > 0,
            mesh=mesh,
        )

    def _encode_targets(self, params: Params, ema: Params, batch: Batch, mesh: Mesh | None) -> Encoded | None:
        """Encode the target images with the moving-average tower and adapter; None without them."""
        if not ema:
            return None
        bound = self.model.bind(parameter_paths.join(params, ema))
        gather_singles(bound, mesh, _LARGE)
        return bound.encode_targets(batch, mesh)

    def metrics(self, monitors: Any, sums: Scalars, totals: Scalars) -> Scalars:
        """Return what the losses report besides themselves."""
        del sums, totals
        return loss_base.metrics(self._losses, monitors)

    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """Return the loss of a step, or what some of its rows add to it."""
        return loss_base.combine(self._losses, step, sums, totals)

    def work(self) -> Sequence[flops.Part]:
        """Count the FLOPs of a step, with the padded rows of the token table."""
        table = self.model.shapes()["decoder"]["embedding"]
        # For the local devices: the model's FLOPs are the same everywhere, those of the program are not.
        return flops.step_parts(
            self.config, table.shape[0], chosen(self.config, None), max(self.config.mesh.context, 1)
        )

    @property
    def precise(self) -> bool:
        """Whether the decoder computes in float32."""
        return self.config.model.decoder.dtype == "float32"

    def group(self, path: parameter_paths.Path) -> ParameterGroupConfig:
        """Return the settings of the parameter's group."""
        return groups.settings(self.config.optimizer, path)

    def initial_params(self) -> Params:
        """Initialize the parameters, frozen ones in the type that they are stored as."""
        return lora_base.initial_params(self.config, self.model)

    def split(self, params: Params) -> tuple[Params, Params]:
        """Split parameters into (trained, frozen) by the config's groups."""
        return groups.split(self.config, params)

    def averaged(self, trained: Params) -> Params:
        """Return tower and adapter where the semantic targets come from their average, without what is frozen."""
        if self._teacher_decay is None:
            return {}
        parts = target_tower(self.config.model), target_adapter(self.config.model)
        return {name: trained[name] for name in parts if name in trained}

    def layers(self, trained: Params) -> Params:
        """Return the decoder's layers, where they are trained."""
        found = trained.get("decoder", {}).get("layers")
        return {"decoder": {"layers": found}} if found else {}

    @property
    def ema_decay(self) -> float:
        """Decay of the teacher per step."""
        return self._teacher_decay or 0.0

    @property
    def _teacher_decay(self) -> float | None:
        decays = (loss.teacher_decay for loss in self.config.losses.values())
        return next((decay for decay in decays if decay is not None), None)

    def check(self, mesh: Mesh) -> None:
        """Refuse a mesh that the model cannot be split over, and attention that is not available on it."""
        check_model_mesh(mesh, self.config)
        decoder = self.config.model.decoder
        if reason := refused(decoder.attention, mesh, self.config.data.seq_len, decoder.head_dim, decoder.dtype):
            raise UsageError(
                f"config.model.decoder.attention={decoder.attention!r} {reason}; 'auto' chooses one that works"
            )

    def start(self, params: Params, mesh: Mesh) -> Params:
        """Replace initial parameters by those that ``config.init`` names."""
        return start_from(self.config, self.model, params, mesh) if starts_from_weights(self.config) else params

    @property
    def partial(self) -> bool:
        """Whether the LoRA base is left out."""
        return bool(self.config.model.lora.rank)

    def base(self, params: Params) -> dict[str, str] | None:
        """Return source and digest of the LoRA base."""
        return lora_base.identify(self.config, params)

    def complete(self, stored: Params, base_of: Mapping[str, str], path: Path, mesh: Mesh) -> Params:
        """Rebuild the LoRA base, and add it to the stored parameters."""
        start = partial(self.start, mesh=mesh) if starts_from_weights(self.config) else None
        return lora_base.with_base(self.config, self.model, mesh, stored, base_of, path, start)


def check_model_mesh(mesh: Mesh, config: Config) -> None:
    """Refuse a mesh that the batch, the sequence or the decoder cannot be split over.

    Raises:
      UsageError: naming the sizes that do not divide, and the nearest mesh of as many devices that works.
    """
    decoder = config.model.decoder
    splits = [
        ("data.seq_len", config.data.seq_len, "context"),
        ("model.decoder.heads", decoder.heads, "tensor"),
        ("model.decoder.kv_heads", decoder.kv_heads, "tensor"),
        ("model.decoder.mlp_width", decoder.mlp_width, "tensor"),
        ("model.decoder.width", decoder.width, "fsdp"),
    ]
    check_mesh(mesh, config.train, splits)
