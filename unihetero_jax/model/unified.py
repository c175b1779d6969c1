"""The unified model: towers + adapters + decoder + heads.

B rows, T slots, K images per row, N visual tokens of a target image, M = K·N visual tokens per row, D width,
F tower width, C channels of a pixel latent, V codes.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from unihetero_jax.config import (
    AdapterConfig,
    Config,
    code_count,
    generating_loss,
    latent_width,
    pixel_tower,
    target_adapter,
    target_section,
    target_tower,
    target_width,
    visual_tokens,
)
from unihetero_jax.config.components import LOSSES, TowerConfig
from unihetero_jax.model.adapters import Adapter, Head, unit_rms
from unihetero_jax.model.attention.base import Packed
from unihetero_jax.model.decoder import Decoder
from unihetero_jax.model.diffusion.head import DiffusionHead
from unihetero_jax.model.vision import INPUT, TARGET, Batch, encode, encode_stored, make_encoder
from unihetero_jax.parallel.mesh import constrain
from unihetero_jax.towers.common.distortion import distort


class Encoded(NamedTuple):
    """Encodings of a batch's images: ``features`` [B, K, N, F], ``embeddings`` [B, K, N, D], float32.

    N and F are those of the side's tower.
    """

    features: jax.Array
    embeddings: jax.Array


class Visual(NamedTuple):
    """The towers' outputs for a batch's images.

    Attributes:
      inputs: the decoder's inputs at input images.
      targets: the decoder's inputs at target images (teacher-forced).
      codes: [B, K, N] int32, what is generated, where that is codes.
      latents: [B, K, N, C], what is generated, where that is latents.
    """

    inputs: Encoded
    targets: Encoded
    codes: jax.Array | None = None
    latents: jax.Array | None = None


class HeadSizes(NamedTuple):
    """What the heads of the losses map from and to.

    Attributes:
      width: D, width of the decoder's hidden states.
      tokens: N, tokens of a target image.
      features: F, feature width of the tower of target images.
      codes: entries of its codebook; 0 without one.
      latents: C, channels of a pixel latent; 0 where no loss predicts them.
      dtype: type of matrix products.
    """

    width: int
    tokens: int
    features: int
    codes: int
    latents: int
    dtype: Any


class VisualSlots(NamedTuple):
    """For each visual token of a row, [B, M]: the slot that predicts it, and its weight (0 where there is none)."""

    predictor: jax.Array
    weight: jax.Array


def role_of_slots(batch: Batch) -> Int[Array, "B T"]:
    """Return the role of the image that each slot is part of; 0 on text."""
    role = jnp.take_along_axis(batch["role"].astype(jnp.int32), jnp.maximum(batch["image"], 0), axis=1)
    return jnp.where(batch["image"] >= 0, role, 0)


def visual_slots(batch: Batch, tokens: int) -> VisualSlots:
    """Turn the slot-wise ``image``/``patch``/``visual_weight`` of a batch into one entry per target token.

    The heads then run on M = K·N entries per row instead of all T slots.
    """
    images = batch["role"].shape[1]
    image, patch, weight = batch["image"], batch["patch"], batch["visual_weight"]
    # Slots of text and of input images write to an entry behind the last, which is cut off.
    entry = jnp.where(role_of_slots(batch) >= TARGET, image * tokens + patch, images * tokens)
    slots = jnp.broadcast_to(jnp.arange(image.shape[1], dtype=jnp.int32), image.shape)
    rows = jnp.arange(image.shape[0])[:, None]
    empty = (image.shape[0], images * tokens + 1)
    slot = jnp.zeros(empty, jnp.int32).at[rows, entry].set(slots)[:, :-1]
    weight = jnp.zeros(empty, jnp.float32).at[rows, entry].set(weight)[:, :-1]
    return VisualSlots(jnp.maximum(slot - 1, 0), weight)


class UnifiedModel(nnx.Module):
    """One decoder over text and visual slots; the hidden state at t−1 predicts slot t of either kind.

    Attributes:
      generation: what is generated on a visual slot: ``semantic``, ``codes`` or ``latents``.
      input_tokens: visual tokens of an input image.
      target_tokens: N, visual tokens of a target image.

    Args:
      config: the whole experiment (its model and losses decide which towers and heads there are).
      vocabulary: token ids.
      rngs: for initialization.
    """

    # None without a loss that needs the head.
    semantic_head: Head | None = None
    code_head: Head | None = None
    pixel_head: Head | DiffusionHead | None = None

    def __init__(self, config: Config, vocabulary: int, *, rngs: nnx.Rngs):
        model = config.model
        self.config = model
        self.image_size = config.data.image_size
        self.generation = model.generation
        self.semantic = generating_loss(config, "semantic")
        self._target_tower = target_tower(model)
        self._target_adapter = target_adapter(model)
        latents = generating_loss(config, "latents")
        self._target_section = target_section(model)

        def tower(name: str, section: TowerConfig) -> Any:
            return make_encoder(section, self.image_size, name, rngs)

        self.understanding_tower = tower("understanding_tower", model.understanding_tower)
        self.understanding_adapter = self._make_adapter(model.understanding_adapter, "understanding_tower", rngs)
        self.generation_tower = (
            None if model.generation_tower is None else tower("generation_tower", model.generation_tower)
        )
        own = self._target_adapter == "generation_adapter"
        self.generation_adapter = (
            self._make_adapter(model.generation_adapter or AdapterConfig(), self._target_tower, rngs) if own else None
        )
        self.input_tokens, self.target_tokens = visual_tokens(config)
        self.decoder = Decoder(model.decoder, vocabulary, rngs=rngs)
        self._make_heads(config, rngs)
        separate = latents is not None and self.generation != "latents"
        self._pixel_section = pixel_tower(config) if separate else None
        self.pixel_tower = None if self._pixel_section is None else tower("pixel_tower", self._pixel_section)

    def _make_heads(self, config: Config, rngs: nnx.Rngs) -> None:
        """Build the heads of the losses, each under the name that its loss gives it."""
        decoder = config.model.decoder
        sizes = HeadSizes(
            decoder.width,
            self.target_tokens,
            target_width(config),
            code_count(config),
            latent_width(config),
            jnp.dtype(decoder.dtype),
        )
        for name, section in config.losses.items():
            if section.weight:
                loss = LOSSES.find(section.kind, f"config.losses.{name}.kind")(section, name)
                if (head := loss.make_head(sizes, rngs)) is not None:
                    setattr(self, loss.head_name, head)

    def _make_adapter(self, config: AdapterConfig, tower: str, rngs: nnx.Rngs) -> Adapter:
        model = self.config
        section: TowerConfig = getattr(model, tower)
        learned = model.visual_positions == "learned"
        positions = section.tokens(self.image_size, f"config.model.{tower}") if learned else 0
        width, scale = model.decoder.width, model.decoder.embedding_scale
        return Adapter(config, section.features, width, scale, positions, rngs=rngs)

    @property
    def tower_of_targets(self) -> Any:
        """The tower of target images."""
        return getattr(self, self._target_tower)

    @property
    def adapter_of_targets(self) -> Adapter:
        """The adapter of target images."""
        adapter: Adapter = getattr(self, self._target_adapter)
        return adapter

    def encode(self, batch: Batch, key: jax.Array | None = None, mesh: Mesh | None = None) -> Visual:
        """Encode a batch's images, each by the towers of its role; without visual positions.

        Args:
          batch: a packed batch: ``role``, features for the towers with ``cached``, and ``images`` for all others.
          key: for sampling latents from their posterior; without it their mean is taken.
          mesh: the batch's rows are split over it.
        """
        model, role = self.config, batch["role"]
        given, target = role == INPUT, role >= TARGET
        targets, codes = self._encode_targets(batch, target | given if model.same_tower else target, key, mesh)
        if model.same_tower:
            plain = targets
        else:
            name = "understanding_tower"
            plain = encode(self.understanding_tower, model.understanding_tower, name, batch, given, key, mesh)
        latents = targets if self.generation == "latents" else None
        embedded = self._embed_targets(targets, mesh)
        alike = model.understanding_distortion == model.generation_distortion
        if model.same_tower and model.share_adapter and alike:
            return Visual(embedded, embedded, codes, latents)
        features = distort(plain, model.understanding_distortion)
        embeddings = _rows(self.understanding_adapter(features), mesh)
        return Visual(Encoded(features, embeddings), embedded, codes, latents)

    def encode_targets(self, batch: Batch, mesh: Mesh | None = None) -> Encoded:
        """Compute the part of ``encode`` that semantic targets need."""
        features, _ = self._encode_targets(batch, batch["role"] >= TARGET, None, mesh)
        return self._embed_targets(features, mesh)

    def _encode_targets(
        self, batch: Batch, needed_BK: jax.Array, key: jax.Array | None, mesh: Mesh | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Return the target tower's features before distortion, and its codes where those are generated."""
        name, tower = self._target_tower, self.tower_of_targets
        if self.generation != "codes":
            return encode(tower, self._target_section, name, batch, needed_BK, key, mesh), None
        stored = encode_stored(tower, self._target_section, name, batch, needed_BK, mesh)
        return tower.features_of(stored, key), tower.indices_of(stored)

    def _embed_targets(self, features: jax.Array, mesh: Mesh | None) -> Encoded:
        features = distort(features, self.config.generation_distortion)
        return Encoded(features, _rows(self.adapter_of_targets(features), mesh))

    def inputs(self, batch: Batch, visual: Visual, noise_key: jax.Array | None = None) -> Float[Array, "B T D"]:
        """Return the input embeddings of every slot: tokens, and on visual slots the image's embedding.

        Args:
          batch: a packed batch.
          visual: its images.
          noise_key: for the noise on target images (``target_noise``); none without it.
        """
        text = self.decoder.embed(batch["tokens"])

        def at_slot(adapter: Adapter, embeddings_BKND: jax.Array) -> jax.Array:
            rows, images, tokens, width = embeddings_BKND.shape
            flat = adapter.place(embeddings_BKND, jnp.arange(tokens)).reshape(rows, images * tokens, width)
            index = jnp.clip(batch["image"] * tokens + batch["patch"], 0, images * tokens - 1)
            return jnp.take_along_axis(flat, index[:, :, None], axis=1).astype(text.dtype)

        targets = visual.targets.embeddings
        if noise_key is not None and self.config.target_noise:
            targets = with_noise(targets, batch["role"] >= TARGET, self.config.target_noise, noise_key)
        slots = at_slot(self.adapter_of_targets, targets)
        if visual.inputs is not visual.targets:
            inputs = at_slot(self.understanding_adapter, visual.inputs.embeddings)
            slots = jnp.where((role_of_slots(batch) == INPUT)[:, :, None], inputs, slots)
        return jnp.where(batch["image"][:, :, None] >= 0, slots, text)

    def hidden(
        self,
        batch: Batch,
        visual: Visual,
        dropout_key: jax.Array | None = None,
        mesh: Mesh | None = None,
        noise_key: jax.Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Return the hidden states of packed rows, teacher-forced; ``noise_key`` as in ``inputs``."""
        x_BTD = self.inputs(batch, visual, noise_key)
        readable = Packed(batch["segment"])
        hidden, _ = self.decoder(x_BTD, batch["position"], readable, dropout_key=dropout_key, mesh=mesh)
        return constrain(hidden, mesh, "batch", "sequence", None)

    def predict_semantics(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any size"]:
        """Predict the next visual embedding (or encoder output) from hidden states, float32."""
        assert self.semantic_head is not None
        return self.semantic_head(hidden)

    def code_logits(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any V"]:
        """Return the logits of the next visual code, float32."""
        assert self.code_head is not None
        return self.code_head(hidden)

    def pixel_targets(
        self, batch: Batch, visual: Visual, key: jax.Array | None = None, mesh: Mesh | None = None
    ) -> Float[Array, "B K N C"]:
        """Return the targets of the pixel head; arguments as of ``encode``. No gradient flows to them."""
        if visual.latents is not None:
            return jax.lax.stop_gradient(visual.latents)
        assert self._pixel_section is not None
        needed = batch["role"] >= TARGET
        return jax.lax.stop_gradient(
            encode(self.pixel_tower, self._pixel_section, "pixel_tower", batch, needed, key, mesh)
        )

    def sample_latents(
        self,
        hidden_BMD: Float[Array, "B M D"],
        keys_B: jax.Array,
        *,
        first: int | jax.Array = 0,
        unconditional: Float[Array, "B M D"] | None = None,
        guidance: float | jax.Array | None = None,
    ) -> Float[Array, "B M C"]:
        """Sample latents from hidden states with the pixel head.

        Args:
          hidden_BMD: states that predict M consecutive tokens.
          keys_B: a key per row, for a diffusion head.
          first: place of the first token in its image, [] or [B, 1].
          unconditional: states to guide away from; a diffusion head has its own null condition.
          guidance: in place of the configured one.
        """
        assert self.pixel_head is not None
        if isinstance(self.pixel_head, DiffusionHead):
            return self.pixel_head.sample(
                hidden_BMD, keys_B, first=first, unconditional=unconditional, guidance=guidance
            )
        return self.pixel_head(hidden_BMD)

    def feed_back(self, generated: jax.Array, patch: jax.Array) -> jax.Array:
        """Return the decoder's input for a generated visual token, as if it had been the true one; [B, D].

        Args:
          generated: the prediction [B, D] (or [B, F] for encoder outputs), the code [B], or the latent [B, C].
          patch: which token of the image it is, [] or [B].
        """
        adapter, distortion = self.adapter_of_targets, self.config.generation_distortion
        if self.generation == "codes":
            embedding = adapter(distort(self.tower_of_targets.codes(generated), distortion))
        elif self.generation == "latents":
            embedding = adapter(distort(generated, distortion))
        elif self.semantic is not None and self.semantic.target == "encoder_output":
            embedding = adapter(generated)
        else:
            embedding = unit_rms(generated, adapter.scale) if adapter.config.normalize else generated
        return adapter.place(embedding, patch)

    def pictures(
        self,
        generated: jax.Array,
        hidden_BND: Float[Array, "B N D"],
        keys_B: jax.Array,
        guidance: float | jax.Array | None = None,
    ) -> UInt8[Array, "B H W 3"] | None:
        """Decode generated tokens to images of the batch's size; None where nothing turns them into pixels.

        Args:
          generated: [B, N, …], as in ``feed_back``.
          hidden_BND: the states that predicted them.
          keys_B: a key per row, for a diffusion head.
          guidance: scale for a diffusion head behind embeddings, in place of the configured one.
        """
        if self.generation in ("codes", "latents"):
            return self.resized(self.tower_of_targets.decode_images(generated))
        if self.pixel_head is None:
            return None
        return self.decode_latents(self.sample_latents(hidden_BND, keys_B, guidance=guidance))

    def decode_latents(self, latents_BNC: Float[Array, "B N C"]) -> UInt8[Array, "B H W 3"]:
        """Decode pixel latents to images of the batch's size."""
        tower: Any = self.tower_of_targets if self.generation == "latents" else self.pixel_tower
        return self.resized(tower.decode_images(latents_BNC))

    def resized(self, images_BHWC: UInt8[Array, "B h w 3"]) -> UInt8[Array, "B H W 3"]:
        """Resize images to the batch's size."""
        size = (images_BHWC.shape[0], self.image_size, self.image_size, 3)
        if images_BHWC.shape == size:
            return images_BHWC
        resized = jax.image.resize(images_BHWC.astype(jnp.float32), size, "bicubic", antialias=True)
        return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)


def with_noise(
    embeddings: Float[Array, "B K N D"], noised: Bool[Array, "B K"], most: float, key: jax.Array
) -> Float[Array, "B K N D"]:
    """Add Gaussian noise to the embeddings of some images and keep their root mean square.

    Args:
      embeddings: of B rows with K images each.
      noised: the images that get noise.
      most: largest standard deviation, relative to an embedding's root mean square; each image's is uniform below it.
      key: for the noise.
    """
    level_key, noise_key = jax.random.split(key)
    level = jnp.where(noised, jax.random.uniform(level_key, noised.shape, maxval=most), 0.0)[:, :, None, None]
    size = jnp.sqrt(jnp.mean(jnp.square(embeddings), axis=-1, keepdims=True) + 1e-12)
    noise = jax.random.normal(noise_key, embeddings.shape, embeddings.dtype)
    return jnp.where(level > 0, unit_rms(embeddings + level * size * noise) * size, embeddings)


def _rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Split the array's rows over the mesh; left alone, it would take the split of the weights it comes from."""
    return constrain(x, mesh, "batch", *[None] * (x.ndim - 1))


def at_slots(hidden_BTD: Float[Array, "B T D"], slots_BM: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Return the hidden states at some slots of each row."""
    return jnp.take_along_axis(hidden_BTD, slots_BM[:, :, None], axis=1)


def purpose_key(key: jax.Array, purpose: str) -> jax.Array:
    """Derive a key for one purpose, so that the random numbers of one part do not change another's."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))
