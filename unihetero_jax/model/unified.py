"""The unified model: tower + adapter + decoder + heads.

B rows, T slots, K images a row, N visual tokens an image, M = K·N visual tokens a row, D width, F tower width,
P pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from unihetero_jax.config import AdapterConfig, Config
from unihetero_jax.model.attention import packed_causal_mask
from unihetero_jax.model.decoder import Decoder, linear
from unihetero_jax.model.gradient import scale_gradient
from unihetero_jax.parallel.mesh import constrain
from unihetero_jax.towers.patch import PatchTower, patch_count, patchify

Batch = Mapping[str, jax.Array]


def unit_rms(x: jax.Array, scale: float = 1.0) -> jax.Array:
    """Scales the last axis to root mean square ``scale``, in float32."""
    x = x.astype(jnp.float32)
    return x * (scale * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6))


class Adapter(nnx.Module):
    """Tower features → the decoder's input embeddings, float32."""

    def __init__(self, config: AdapterConfig, features: int, width: int, scale: float, *, rngs: nnx.Rngs):
        self.config = config
        self.scale = scale
        if config.kind == "mlp":
            self.hidden = linear(features, width, ("features", "hidden"), jnp.float32, rngs)
            self.output = linear(width, width, ("hidden", "embed"), jnp.float32, rngs)
        else:
            self.output = linear(features, width, (None, "embed"), jnp.float32, rngs)

    def __call__(self, features: Float[Array, "*any F"]) -> Float[Array, "*any D"]:
        """Embeddings of features; of root mean square ``scale`` when normalised."""
        x = unit_rms(features) if self.config.normalize_input else features
        if self.config.kind == "mlp":
            x = jax.nn.gelu(self.hidden(x))
        x = self.output(x)
        return unit_rms(x, self.scale) if self.config.normalize else x


class MLPHead(nnx.Module):
    """Linear–GELU–Linear on hidden states."""

    def __init__(self, width: int, hidden: int, size: int, axis: str | None, dtype: Any, *, rngs: nnx.Rngs):
        self.hidden = linear(width, hidden, ("embed", "hidden"), dtype, rngs)
        self.output = linear(hidden, size, ("hidden", axis), dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """float32 predictions."""
        return self.output(jax.nn.gelu(self.hidden(x))).astype(jnp.float32)


class Visual(NamedTuple):
    """What the towers make of a batch's images: ``features`` [B, K, N, F], ``embeddings`` [B, K, N, D], float32."""

    features: jax.Array
    embeddings: jax.Array


class VisualSlots(NamedTuple):
    """For each visual token of a row, [B, M]: the slot that predicts it, and its weight (0 where there is none)."""

    predictor: jax.Array
    weight: jax.Array


def visual_slots(batch: Batch, tokens: int) -> VisualSlots:
    """Turns the slot-wise ``image``/``patch``/``visual_weight`` of a batch into one entry a visual token.

    The heads then run on M = K·N entries a row instead of all T slots.
    """
    images = batch["role"].shape[1]
    image, patch, weight = batch["image"], batch["patch"], batch["visual_weight"]
    # Text slots write to an entry behind the last, which is cut off.
    entry = jnp.where(image >= 0, image * tokens + patch, images * tokens)
    slots = jnp.broadcast_to(jnp.arange(image.shape[1], dtype=jnp.int32), image.shape)
    rows = jnp.arange(image.shape[0])[:, None]
    empty = (image.shape[0], images * tokens + 1)
    slot = jnp.zeros(empty, jnp.int32).at[rows, entry].set(slots)[:, :-1]
    weight = jnp.zeros(empty, jnp.float32).at[rows, entry].set(weight)[:, :-1]
    return VisualSlots(jnp.maximum(slot - 1, 0), weight)


class UnifiedModel(nnx.Module):
    """One decoder over text and visual slots; the hidden state at t−1 predicts slot t, whatever it is.

    Args:
      config: the whole experiment (model and objectives say which heads there are).
      vocabulary: token ids.
      rngs: for initialisation.
    """

    def __init__(self, config: Config, vocabulary: int, *, rngs: nnx.Rngs):
        model, decoder = config.model, config.model.decoder
        dtype = jnp.dtype(decoder.dtype)
        self.image_size = config.data.image_size
        self.tokens = patch_count(self.image_size, model.tower.patch_size)
        self.tower = PatchTower(model.tower, rngs=rngs)
        self.adapter = Adapter(model.adapter, model.tower.width, decoder.width, decoder.embedding_scale, rngs=rngs)
        self.positions: nnx.Param | None
        if model.visual_positions == "learned":
            # Of the scale of the embeddings they are added to, for the reason that token embeddings start large.
            table = nnx.initializers.normal(decoder.embedding_scale)(rngs.params(), (self.tokens, decoder.width))
            self.positions = nnx.Param(table, axes=("patches", "embed"))
        else:
            self.positions = None
        self.decoder = Decoder(decoder, vocabulary, rngs=rngs)
        self.semantic = config.objectives.semantic
        self.pixel = config.objectives.pixel
        self.semantic_head: MLPHead | None
        self.pixel_head: MLPHead | None
        if self.semantic.weight:
            embedded = self.semantic.target == "input_embedding"
            size = decoder.width if embedded else model.tower.width
            self.semantic_head = MLPHead(decoder.width, decoder.width, size, "features", dtype, rngs=rngs)
        else:
            self.semantic_head = None
        if self.pixel.weight:
            pixels = model.tower.patch_size**2 * 3
            self.pixel_head = MLPHead(decoder.width, self.pixel.width, pixels, "features", dtype, rngs=rngs)
        else:
            self.pixel_head = None

    def see(self, images_BKHWC: jax.Array) -> Visual:
        """Features and input embeddings of images, without visual positions."""
        features = self.tower(images_BKHWC)
        return Visual(features, self.adapter(features))

    def visual_input(self, embedding: jax.Array, patch: jax.Array) -> jax.Array:
        """What enters the decoder on a visual slot: the embedding plus the position of its patch.

        Args:
          embedding: [..., D] input embeddings.
          patch: [...] which token of the image; broadcasts.
        """
        if self.positions is None:
            return embedding
        return embedding + self.positions[...][patch]

    def inputs(self, batch: Batch, embeddings_BKND: jax.Array) -> Float[Array, "B T D"]:
        """Input embeddings of every slot: tokens, and on visual slots the image's embedding there."""
        text = self.decoder.embed(batch["tokens"])
        image, patch = batch["image"], batch["patch"]
        rows = embeddings_BKND.shape[0]
        flat = self.visual_input(embeddings_BKND, jnp.arange(self.tokens)).reshape(rows, -1, embeddings_BKND.shape[-1])
        index = jnp.maximum(image * self.tokens + patch, 0)
        visual = jnp.take_along_axis(flat, index[:, :, None], axis=1).astype(text.dtype)
        return jnp.where(image[:, :, None] >= 0, visual, text)

    def hidden(
        self, batch: Batch, visual: Visual, dropout_key: jax.Array | None = None, mesh: Mesh | None = None
    ) -> Float[Array, "B T D"]:
        """Hidden states of packed rows, teacher-forced."""
        mask = packed_causal_mask(batch["segment"])
        x_BTD = self.inputs(batch, visual.embeddings)
        hidden, _ = self.decoder(x_BTD, batch["position"], mask, dropout_key=dropout_key, mesh=mesh)
        return constrain(hidden, mesh, "batch", "sequence", None)

    def predict_semantics(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any size"]:
        """The predicted next visual embedding (or encoder output) at these hidden states, float32."""
        assert self.semantic_head is not None
        return self.semantic_head(hidden)

    def predict_pixels(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any P"]:
        """The predicted next patch, pixels in [−1, 1]; the gradient to the decoder is scaled as configured."""
        assert self.pixel_head is not None
        return self.pixel_head(scale_gradient(hidden, self.pixel.gradient_to_decoder))

    def feed_back(self, prediction: jax.Array, patch: jax.Array) -> jax.Array:
        """What enters the decoder after a semantic prediction was made, as if it had been the true embedding.

        Args:
          prediction: [B, D] (or [B, F] for encoder outputs).
          patch: which token of the image it is.
        """
        if self.semantic.target == "encoder_output":
            embedding = self.adapter(prediction)
        elif self.adapter.config.normalize:
            embedding = unit_rms(prediction, self.adapter.scale)
        else:
            embedding = prediction
        return self.visual_input(embedding, patch)

    def pixel_targets(self, images_BKHWC: jax.Array) -> Float[Array, "B K N P"]:
        """The patches that the pixel head regresses."""
        return patchify(images_BKHWC, self.tower.config.patch_size)


def at_slots(hidden_BTD: Float[Array, "B T D"], slots_BM: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Hidden states at some slots of each row."""
    return jnp.take_along_axis(hidden_BTD, slots_BM[:, :, None], axis=1)
