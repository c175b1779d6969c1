from __future__ import annotations

import dataclasses

import pytest

from unihetero_jax.config import defaults, resolve
from unihetero_jax.model import flops
from unihetero_jax.towers.common.autoencoder.config import KL16_TINY


def _config(remat: str = "none", chunk: int = 0):
    config = defaults()
    config.data.seq_len, config.data.images_per_row, config.data.image_size = 64, 2, 32
    config.train.batch_size = 4
    decoder = config.model.decoder
    decoder.width, decoder.layers, decoder.heads, decoder.kv_heads, decoder.mlp_width = 32, 3, 4, 2, 48
    decoder.remat = remat
    config.losses.text.chunk = chunk
    config.losses.pixel.weight = 0.0
    config.model.understanding_tower.patch_size = 8
    config.model.understanding_tower.width = 24
    return resolve(config)


def test_counts_by_hand():
    parts = {part.name: part for part in flops.step_parts(_config(), 200)}
    tokens, visual = 4 * 64, 4 * 2 * 16
    # Queries and output 32·32, keys and values 32·16, three matrices of 32·48.
    layer = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert parts["decoder linears"].model == 3 * tokens * 3 * layer
    # Two products of head width 8, 4 heads, over half of 64 slots.
    assert parts["decoder attention"].model == 3 * tokens * 3 * (2 * 2 * 8 * 4 * 32)
    # The table's rows are padded to 256.
    assert parts["text head"].model == 3 * tokens * 2 * 32 * 256
    # 16 patches of 8·8·3 numbers to 24; nothing wants the gradient of pixels.
    assert parts["understanding tower"].model == 2 * visual * 2 * 192 * 24
    assert parts["adapter"].model == 3 * visual * 2 * 24 * 32
    assert parts["adapter output"].model == 3 * visual * 2 * 32 * 32
    assert parts["semantic head"].model == 3 * visual * 2 * (32 * 32 + 32 * 32)


def test_the_program_does_whole_rows_and_what_it_recomputes():
    plain, kept, full = (
        {part.name: part for part in flops.step_parts(_config(policy, chunk), 200)}
        for policy, chunk in (("none", 0), ("dots", 0), ("full", 16))
    )
    attention = plain["decoder attention"]
    assert attention.executed == 2 * attention.model
    assert kept["decoder attention"].executed == pytest.approx(attention.executed * 4 / 3)
    assert kept["decoder linears"].executed == plain["decoder linears"].executed
    assert full["decoder linears"].executed == pytest.approx(plain["decoder linears"].executed * 4 / 3)
    assert full["text head"].executed == pytest.approx(plain["text head"].executed * 4 / 3)
    assert full["decoder linears"].model == plain["decoder linears"].model


@pytest.mark.parametrize(("policy", "forward"), [("none", 1), ("dots", 1), ("full", 2)])
def test_splash_attention_skips_blocks_and_makes_scores_anew(policy, forward):
    config = _config(policy)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=2048))
    plain, splash = (flops.step_parts(config, 200, name)[1] for name in ("xla", "splash"))
    assert splash.model == plain.model
    assert splash.kernel
    assert not plain.kernel
    # Blocks of 512: ten of sixteen pairs. Heads of 8 channels fill 128. Two products a pass forward, seven backward.
    product = 2 * 512 * 512 * 128
    assert splash.executed == 4 * 3 * 4 * 10 * product * (2 * forward + 7)
    # A row over two devices: blocks of 512 still; over eight, of 256.
    assert flops.step_parts(config, 200, "splash", 2)[1] == splash
    ratio = flops.step_parts(config, 200, "splash", 8)[1].executed / splash.executed
    assert ratio == pytest.approx((36 / 64) / (10 / 16))


def test_the_kernel_of_cudnn_makes_scores_anew():
    plain, kernel = (flops.step_parts(_config(), 200, name)[1] for name in ("xla", "cudnn"))
    assert kernel.executed == pytest.approx(plain.executed * 3.5 / 3)


def test_an_encoder_counts_what_xla_counts():
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from unihetero_jax.towers.common.autoencoder.config import encoder_flops
    from unihetero_jax.towers.kl16.network import KL16

    tower = nnx.eval_shape(lambda: KL16(KL16_TINY, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(tower)
    size = KL16_TINY.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    cost = jax.jit(lambda s, x: nnx.merge(graph, s).posterior(x)[0]).lower(state, image).cost_analysis()
    # XLA also counts norms and activations, which are much of a network this small.
    assert encoder_flops(KL16_TINY, 2 * KL16_TINY.latent) == pytest.approx(cost["flops"], rel=0.12)
