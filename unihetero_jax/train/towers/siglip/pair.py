"""An image tower and a text tower, trained to match images with their texts.

B rows, T slots, N patches, F tower width, D text width, E width of the shared space, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from unihetero_jax.config import DecoderConfig
from unihetero_jax.model.attention.base import packed_causal_mask
from unihetero_jax.model.decoder import Decoder, linear
from unihetero_jax.parallel.mesh import constrain
from unihetero_jax.parallel.module_definition import Params
from unihetero_jax.towers.common.vit.split_patches import fold, split
from unihetero_jax.towers.siglip.network import SigLIP
from unihetero_jax.towers.vq16.network import unit
from unihetero_jax.train.towers.siglip.config import SigLIPRunConfig


class Pairs(NamedTuple):
    """Embeddings of images and texts.

    Attributes:
      images: unit embeddings, [B, E].
      texts: unit embeddings, [B, E].
      scale: factor on their products, scalar.
      bias: of their products, scalar.
      captions: sum of the cross-entropies of a row's caption tokens given its image, [B]; 0 without a captioner.
    """

    images: jax.Array
    texts: jax.Array
    scale: jax.Array
    bias: jax.Array
    captions: jax.Array


class Text(NamedTuple):
    """The wanted tokens of each row, moved to its front.

    Attributes:
      tokens: ids, [B, T].
      wanted: which slots have one, [B, T].
      hidden: states of the text tower, [B, T, D].
    """

    tokens: jax.Array
    wanted: jax.Array
    hidden: jax.Array


class ImageTextPair(nnx.Module):
    """Both towers, their projections into one space, and the learned scale and bias of arXiv 2303.15343.

    An image is pooled as the mean of its patches' features after a layer, a text as that of its tokens: all of them
    contribute from the first step on.

    With ``losses.captioning``, further layers on top of the text tower's take the image's patches as a prefix and
    predict the next token (CoCa, arXiv 2205.01917, section 3.2, with a prefix instead of cross-attention). They need
    everything that a caption states; the contrastive loss is nearly solved by the disc's color alone.
    """

    def __init__(self, config: SigLIPRunConfig, vocabulary: int, *, rngs: nnx.Rngs):
        text = config.text
        stack = DecoderConfig(
            width=text.width,
            layers=text.layers,
            heads=text.heads,
            kv_heads=text.heads,
            mlp_width=text.mlp_width,
            dtype="float32",
        )
        self.longest = text.tokens
        features, width = config.tower.width, config.losses.width
        self.tower = SigLIP(config.tower, rngs=rngs)
        if config.split_patches:
            split(self.tower, rngs=rngs)
        self.text_tower = Decoder(stack, vocabulary, rngs=rngs)
        # The captioner's table is only its output head, and is initialized as one.
        head = dataclasses.replace(stack, layers=text.caption_layers, embedding_scale=text.width**-0.5, logit_scale=1.0)
        captions = config.losses.captioning > 0
        self.captioner = Decoder(head, vocabulary, rngs=rngs) if captions else None
        self.prefix = linear(features, text.width, ("features", "hidden"), jnp.float32, rngs) if captions else None
        self.image_hidden = linear(features, 2 * features, ("features", "hidden"), jnp.float32, rngs)
        self.image_output = linear(2 * features, width, ("hidden", "features"), jnp.float32, rngs)
        self.text_hidden = linear(text.width, 2 * text.width, ("embed", "hidden"), jnp.float32, rngs)
        self.text_output = linear(2 * text.width, width, ("hidden", "features"), jnp.float32, rngs)
        self.log_scale = nnx.Param(jnp.log(jnp.float32(config.losses.scale)), axes=())
        self.bias = nnx.Param(jnp.float32(config.losses.bias), axes=())

    def embed_images(self, images_BHWC: UInt8[Array, "B H W 3"], mesh: Mesh | None = None) -> Float[Array, "B E"]:
        """Return unit embeddings of raw images."""
        return self._pool_patches(self.tower(images_BHWC[:, None], mesh)[:, 0])

    def embed_texts(
        self, tokens_BT: Int[Array, "B T"], wanted_BT: Bool[Array, "B T"], mesh: Mesh | None = None
    ) -> Float[Array, "B E"]:
        """Return unit embeddings of the wanted tokens of each row, in their order, without the others."""
        return self._pool_text(self._encode_text(tokens_BT, wanted_BT, mesh))

    def __call__(
        self,
        images_BHWC: UInt8[Array, "B H W 3"],
        tokens_BT: Int[Array, "B T"],
        wanted_BT: Bool[Array, "B T"],
        mesh: Mesh | None = None,
    ) -> Pairs:
        """Embed images and their texts."""
        features_BNF = self.tower(images_BHWC[:, None], mesh)[:, 0]
        text = self._encode_text(tokens_BT, wanted_BT, mesh)
        return Pairs(
            self._pool_patches(features_BNF),
            self._pool_text(text),
            jnp.exp(self.log_scale[...]),
            self.bias[...],
            self._caption_losses(features_BNF, text, mesh),
        )

    def _pool_patches(self, features_BNF: jax.Array) -> jax.Array:
        hidden = jax.nn.gelu(self.image_hidden(features_BNF))
        return unit(self.image_output(jnp.mean(hidden, axis=1)))

    def _pool_text(self, text: Text) -> jax.Array:
        hidden = jax.nn.gelu(self.text_hidden(text.hidden)) * text.wanted[:, :, None]
        count = jnp.maximum(jnp.sum(text.wanted, axis=1, keepdims=True), 1)
        return unit(self.text_output(jnp.sum(hidden, axis=1) / count))

    def _encode_text(self, tokens_BT: jax.Array, wanted_BT: jax.Array, mesh: Mesh | None) -> Text:
        order = jnp.argsort(~wanted_BT, axis=1, stable=True)
        order = order[:, : self.longest]
        tokens, wanted = (jnp.take_along_axis(x, order, axis=1) for x in (tokens_BT, wanted_BT))
        position = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        mask = packed_causal_mask(wanted.astype(jnp.int32))
        hidden_BTD, _ = self.text_tower(self.text_tower.embed(tokens), position, mask, mesh=mesh)
        return Text(tokens, wanted, hidden_BTD)

    def _caption_losses(self, features_BNF: jax.Array, text: Text, mesh: Mesh | None) -> jax.Array:
        """Sum the cross-entropies of a row's wanted tokens, given the image and the tokens before, [B]."""
        if self.captioner is None or self.prefix is None:
            return jnp.zeros(len(features_BNF))
        patches = features_BNF.shape[1]
        x_BSD = jnp.concatenate([self.prefix(features_BNF), text.hidden], axis=1)
        position = jnp.broadcast_to(jnp.arange(x_BSD.shape[1], dtype=jnp.int32), x_BSD.shape[:2])
        mask = packed_causal_mask(jnp.pad(text.wanted, ((0, 0), (patches, 0)), constant_values=True).astype(jnp.int32))
        hidden_BSD, _ = self.captioner(x_BSD, position, mask, mesh=mesh)
        # The last patch predicts the first token.
        logits_BTV = self.captioner.logits(hidden_BSD[:, patches - 1 : -1])
        losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, text.tokens)
        return jnp.sum(losses_BT * text.wanted, axis=1)


def image_tower(params: Params) -> Params:
    """Return the parameters of a pair's image tower, as ``SigLIP`` has them."""
    tower = params["tower"]
    return {**tower, "patch": fold(tower["patch"])} if "detail" in tower["patch"] else tower


def sigmoid_sums(
    pairs: Pairs, weight_B: Float[Array, " B"], mesh: Mesh | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute Σ weight · loss over images, each against every text of the batch (arXiv 2303.15343, equation 1).

    Pairs are independent, so that an image's share needs no sum over the others; but every text is compared with every
    image, on whatever device they are.

    Args:
      pairs: embeddings of the whole batch.
      weight_B: of each row; pairs of rows count by the product of their weights.
      mesh: that the products are sharded over: each device has its images and all texts.

    Returns:
      The sum, to be divided by Σ weight; and the weight of the rows whose own text is the nearest of all
      (``image_to_text``), and whose own image is (``text_to_image``).
    """
    texts = constrain(pairs.texts, mesh, None, None)
    cosine_BB = jnp.einsum("be,ce->bc", pairs.images, texts, precision=jax.lax.Precision.HIGHEST)
    cosine_BB = constrain(cosine_BB, mesh, "batch", None)
    same = jnp.eye(cosine_BB.shape[0], dtype=bool)
    logits = jnp.where(same, 1.0, -1.0) * (pairs.scale * cosine_BB + pairs.bias)
    loss = -jnp.sum(jax.nn.log_sigmoid(logits) * weight_B[:, None] * weight_B[None, :])
    # A row without weight is no candidate.
    candidates = jnp.where(weight_B > 0, 0.0, -jnp.inf)
    truth = jnp.arange(cosine_BB.shape[0])
    found = {
        "image_to_text": jnp.argmax(cosine_BB + candidates[None, :], axis=1) == truth,
        "text_to_image": jnp.argmax(cosine_BB + candidates[:, None], axis=0) == truth,
    }
    return loss, {name: jnp.sum(hit * weight_B) for name, hit in found.items()}
