"""The decoder: what a slot may read, where it thinks it is, and what the options do not change."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from unihetero_jax.config import DecoderConfig, MeshConfig, RopeScalingConfig
from unihetero_jax.model.attention.base import attention, packed_causal_mask
from unihetero_jax.model.build import define_language_model
from unihetero_jax.model.decoder import Decoder, rotary_frequencies, rotate, rotation
from unihetero_jax.model.language_model import LanguageModel
from unihetero_jax.parallel.mesh import make_mesh

CONFIG = DecoderConfig(width=32, layers=2, heads=4, kv_heads=2, mlp_width=48, dtype="float32")
PLAIN = RopeScalingConfig()
VOCABULARY = 200
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@functools.cache
def make(config: DecoderConfig) -> Decoder:
    return nnx.jit(lambda: Decoder(config, VOCABULARY, rngs=nnx.Rngs(0)))()


@functools.cache
def compiled(config: DecoderConfig):
    graph, state = nnx.split(make(config))

    @jax.jit
    def hidden(state, tokens, segment, position):
        decoder = nnx.merge(graph, state)
        return decoder(decoder.embed(tokens), position, packed_causal_mask(segment))[0]

    return lambda *arrays: np.asarray(hidden(state, *arrays), np.float32)


def rows(*lengths: int, slots: int = 24, seed: int = 0):
    """A row that packs samples of these lengths: (tokens, segment, position), [1, slots]."""
    chance = np.random.default_rng(seed)
    tokens, segment, position = (np.zeros((1, slots), np.int32) for _ in range(3))
    start = 0
    for number, length in enumerate(lengths, start=1):
        here = np.s_[0, start : start + length]
        tokens[here] = chance.integers(1, VOCABULARY, length)
        segment[here] = number
        position[here] = np.arange(length)
        start += length
    return tokens, segment, position


def random_heads(seed: int, kv_heads: int):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((2, 24, 4, 8), (2, 24, kv_heads, 8), (2, 24, kv_heads, 8))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_the_formula(kv_heads):
    query, key, value = random_heads(0, kv_heads)
    segment = np.concatenate([rows(7, 5, 9)[1], rows(24)[1]])
    mask = packed_causal_mask(jnp.asarray(segment))
    expected = np.zeros(query.shape, np.float32)
    for row, slot, head in np.ndindex(2, 24, 4):
        readable = [s for s in range(slot + 1) if segment[row, s] == segment[row, slot]]
        group = head // (4 // kv_heads)
        scores = np.asarray([query[row, slot, head] @ key[row, s, group] for s in readable]) / np.sqrt(8)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        expected[row, slot, head] = sum(w * value[row, s, group] for w, s in zip(weights, readable, strict=True))
    for implementation in ("auto", "xla", "reference"):
        np.testing.assert_allclose(attention(query, key, value, mask, implementation), expected, **TOLERANCE)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_has_the_gradient_of_the_formula(kv_heads):
    arrays = random_heads(1, kv_heads)
    mask = packed_causal_mask(jnp.asarray(np.repeat(rows(7, 5, 9)[1], 2, axis=0)))

    def loss(arrays, implementation):
        return jnp.sum(jnp.sin(attention(*arrays, mask, implementation)))

    gradients = [jax.grad(loss)(arrays, implementation) for implementation in ("xla", "reference")]
    for left, right in zip(*gradients, strict=True):
        np.testing.assert_allclose(left, right, **TOLERANCE)


def test_a_sample_among_others_is_as_if_alone():
    hidden = compiled(CONFIG)
    tokens, segment, position = rows(7, 5, 9)
    together = hidden(tokens, segment, position)[0]
    for number, (start, length) in enumerate([(0, 7), (7, 5), (12, 9)], start=1):
        alone = [np.zeros((1, 24), np.int32) for _ in range(3)]
        for array, source in zip(alone, (tokens, segment, position), strict=True):
            array[0, :length] = source[0, start : start + length]
        alone[1][0, :length] = 1
        np.testing.assert_allclose(together[start : start + length], hidden(*alone)[0, :length], **TOLERANCE)
        assert segment[0, start] == number


def test_what_comes_later_changes_nothing_before():
    hidden = compiled(CONFIG)
    tokens, segment, position = rows(20)
    changed = tokens.copy()
    changed[0, 12] = tokens[0, 12] % (VOCABULARY - 1) + 1
    before, after = hidden(tokens, segment, position)[0], hidden(changed, segment, position)[0]
    np.testing.assert_array_equal(before[:12], after[:12])
    assert (np.abs(before[12:20] - after[12:20]).max(axis=-1) > 1e-4).all(), "and all that follows reads it"


def test_padding_is_neither_read_nor_harmful():
    hidden = compiled(CONFIG)
    tokens, segment, position = rows(9)
    noisy = tokens.copy()
    noisy[0, 9:] = 5
    np.testing.assert_array_equal(hidden(tokens, segment, position)[0, :9], hidden(noisy, segment, position)[0, :9])
    assert np.isfinite(hidden(tokens, segment, position)).all()


def test_rotation_depends_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def score(at: int, other: int) -> float:
        left, right = (
            rotate(x, rotation(jnp.asarray([[place]]), 16, 10_000.0, PLAIN)) for x, place in ((query, at), (key, other))
        )
        return float(jnp.sum(left * right))

    for distance in (0, 1, 5, 100):
        scores = [score(place + distance, place) for place in (0, 3, 50, 1000)]
        np.testing.assert_allclose(scores, scores[0], atol=2e-3)
    assert abs(score(5, 0) - score(0, 0)) > 1e-2
    rotated = rotate(query, rotation(jnp.asarray([[7]]), 16, 10_000.0, PLAIN))
    assert float(jnp.linalg.norm(rotated)) == pytest.approx(float(jnp.linalg.norm(query)), rel=1e-5)


def test_llama3_scaling_by_hand():
    """Llama 3.1's numbers: a head of 128, theta 500,000, factor 8, low 1, high 4, 8,192 positions at first."""
    scaling = RopeScalingConfig("llama3")
    plain, scaled = (np.asarray(rotary_frequencies(128, 5e5, kind), np.float64) for kind in (PLAIN, scaling))
    # Channel 32: 1 / sqrt(500,000), a turn in 4,442.88 positions, so 1.843848 turns, and 0.281283 of it stays.
    assert plain[32] == pytest.approx(1.4142136e-3, rel=1e-5)
    assert scaled[32] == pytest.approx(1.4142136e-3 * (0.281283 + 0.718717 / 8), rel=1e-5)
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_array_equal(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_array_equal(scaled[turns < 1], plain[turns < 1] / 8)
    assert (np.diff(scaled) < 0).all()
    linear = np.asarray(rotary_frequencies(128, 5e5, RopeScalingConfig("linear", factor=4.0)))
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-6)


def test_linear_scaling_is_a_slower_walk():
    """Positions 0, 4, 8 … divided by 4 are 0, 1, 2 …: the model gives the same hidden states."""
    tokens, segment, position = rows(7, 9)
    expected = compiled(CONFIG)(tokens, segment, position)
    scaled = compiled(dataclasses.replace(CONFIG, rope_scaling=RopeScalingConfig("linear", factor=4.0)))
    np.testing.assert_allclose(scaled(tokens, segment, 4 * position), expected, **TOLERANCE)
    assert np.abs(scaled(tokens, segment, position) - expected).max() > 1e-3


def test_a_shift_of_all_positions_changes_nothing():
    hidden = compiled(CONFIG)
    tokens, segment, position = rows(20)
    np.testing.assert_allclose(
        hidden(tokens, segment, position)[0, :20], hidden(tokens, segment, position + 40)[0, :20], rtol=1e-3, atol=1e-3
    )
    assert np.abs(hidden(tokens, segment, position) - hidden(tokens, segment, 3 * position)).max() > 1e-2


@functools.cache
def gradients(**changes):
    config = dataclasses.replace(CONFIG, dropout=0.2, **changes)
    graph, state = nnx.split(make(dataclasses.replace(config, remat="none")))
    graph, _ = nnx.split(make(config))
    tokens, segment, position = rows(7, 5, 9)

    @jax.jit
    def gradient(state):
        def loss(state):
            decoder = nnx.merge(graph, state)
            mask = packed_causal_mask(segment)
            x, _ = decoder(decoder.embed(tokens), position, mask, dropout_key=jax.random.key(3))
            return jnp.mean(jnp.square(decoder.logits(x)))

        return jax.grad(loss)(state)

    return jax.tree.map(np.asarray, nnx.to_pure_dict(gradient(state)))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_no_gradient(remat):
    kept, recomputed = gradients(), gradients(remat=remat)
    for left, right in zip(jax.tree.leaves(kept), jax.tree.leaves(recomputed), strict=True):
        scale = np.abs(left).max()
        assert scale > 0
        np.testing.assert_allclose(right, left, atol=1e-5 * scale)


def saved(remat: str) -> int:
    """Numbers kept for the backward pass."""
    config = dataclasses.replace(CONFIG, remat=remat, layers=4)
    graph, state = nnx.split(make(config))
    tokens, segment, position = rows(20)

    def loss(state):
        decoder = nnx.merge(graph, state)
        return jnp.sum(decoder(decoder.embed(tokens), position, packed_causal_mask(segment))[0])

    _, backward = jax.vjp(loss, state)
    return sum(leaf.size for leaf in jax.tree.leaves(backward))


def test_recomputing_keeps_less():
    assert saved("full") < saved("dots") < saved("none")


def lowered(layers: int) -> str:
    config = dataclasses.replace(CONFIG, layers=layers)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, VOCABULARY, rngs=nnx.Rngs(0))))
    tokens, segment, position = rows(20)

    def loss(state):
        decoder = nnx.merge(graph, state)
        return jnp.sum(decoder(decoder.embed(tokens), position, packed_causal_mask(segment))[0])

    return jax.jit(jax.grad(loss)).lower(abstract).as_text()


def test_the_program_does_not_grow_with_depth():
    shallow, deep = lowered(10), lowered(40)  # on one CPU device a few layers are compiled one by one
    assert deep.count("\n") == shallow.count("\n")
    assert deep.count("dot_general") == shallow.count("dot_general")


def test_bfloat16_is_near_float32():
    tokens, segment, position = rows(7, 5, 9)
    exact = compiled(CONFIG)(tokens, segment, position)
    rough = compiled(dataclasses.replace(CONFIG, dtype="bfloat16"))(tokens, segment, position)
    used = segment[0] > 0
    error = np.abs(exact - rough)[0, used]
    assert 1e-4 < error.max() < 0.15
    assert error.mean() < 0.02


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_logits_are_float32(dtype):
    decoder = make(dataclasses.replace(CONFIG, dtype=dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(decoder, nnx.Param))} == {np.dtype("float32")}
    x = decoder.embed(jnp.asarray([[1, 2]]))
    assert x.dtype == dtype
    assert decoder.logits(x).dtype == jnp.float32


def test_logits_are_of_the_vocabulary_and_not_of_its_padding():
    decoder = make(CONFIG)
    assert decoder.embedding[...].shape[0] == 256
    assert decoder.logits(decoder.embed(jnp.asarray([[1, 2]]))).shape == (1, 2, VOCABULARY)


def test_tied_embeddings_are_the_head_and_untied_ones_are_not():
    tied, untied = make(CONFIG), make(dataclasses.replace(CONFIG, tie_embeddings=False))
    hidden = jax.random.normal(jax.random.key(0), (1, 3, 32))
    for decoder, kernel in ((tied, tied.embedding[...].T), (untied, untied.head[...])):
        expected = CONFIG.logit_scale * hidden @ kernel[:, :VOCABULARY]
        np.testing.assert_allclose(decoder.logits(hidden), expected, **TOLERANCE)
    names = [set(nnx.to_pure_dict(nnx.state(decoder, nnx.Param))) for decoder in (tied, untied)]
    assert names[1] - names[0] == {"head"}
    assert not np.allclose(untied.head[...].T, untied.embedding[...])


def test_every_layer_starts_with_numbers_of_its_own():
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(make(CONFIG).layers, nnx.Param))):
        if not re.search("norm", jax.tree_util.keystr(path)):
            assert not np.allclose(leaf[0], leaf[1]), path


def test_dropout_needs_a_key_and_is_a_function_of_it():
    decoder = make(dataclasses.replace(CONFIG, dropout=0.3))
    tokens, segment, position = rows(20)

    @jax.jit
    def run(key):
        return decoder(decoder.embed(tokens), position, packed_causal_mask(segment), dropout_key=key)[0]

    one, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-2
    assert np.abs(one - compiled(CONFIG)(tokens, segment, position)).max() > 1e-2


def test_a_cache_gives_what_the_whole_row_gives():
    decoder = make(CONFIG)
    tokens, segment, position = rows(12, slots=12)
    whole = compiled(CONFIG)(tokens, segment, position)
    cache = decoder.empty_cache(1, 16)
    made = []
    for start, end in ((0, 5), (5, 6), (6, 12)):
        readable = jnp.arange(16)[None, None, :] <= jnp.arange(start, end)[None, :, None]
        hidden, cache = decoder(
            decoder.embed(tokens[:, start:end]), position[:, start:end], readable, cache=cache, start=start
        )
        made.append(np.asarray(hidden))
    np.testing.assert_allclose(np.concatenate(made, axis=1), whole, **TOLERANCE)


def test_biases_and_norms_of_queries_and_keys_are_parameters_with_places():
    plain, full = (
        define_language_model(dataclasses.replace(CONFIG, head_width=12, qkv_bias=on, qk_norm=on), VOCABULARY)
        for on in (False, True)
    )
    layers = full.shapes()["decoder"]["layers"]
    extras = {"query": "bias", "key": "bias", "value": "bias", "query_norm": "scale", "key_norm": "scale"}
    shapes = {name: layers[name][kind].shape for name, kind in extras.items()}
    assert shapes == {
        "query": (2, 4, 12),
        "key": (2, 2, 12),
        "value": (2, 2, 12),
        "query_norm": (2, 12),
        "key_norm": (2, 12),
    }
    assert "query_norm" not in plain.shapes()["decoder"]["layers"]
    assert "bias" not in plain.shapes()["decoder"]["layers"]["query"]
    places = full.shardings(make_mesh(MeshConfig(fsdp=4, tensor=2)))["decoder"]["layers"]
    assert places["query"]["bias"].spec == P(None, "tensor", None)
    assert places["query_norm"]["scale"].spec == P(None, None)


def test_normed_queries_and_keys_do_not_see_the_scale_of_their_kernels():
    tokens, segment, position = rows(20)
    for normed in (False, True):
        config = dataclasses.replace(CONFIG, qk_norm=normed)
        graph, state = nnx.split(make(config))
        louder = jax.tree.map(lambda leaf: leaf, state)
        for name in ("query", "key"):
            louder["layers"][name]["kernel"].set_value(8 * louder["layers"][name]["kernel"].get_value())
        before, after = (
            nnx.merge(graph, s)(nnx.merge(graph, s).embed(tokens), position, packed_causal_mask(segment))[0]
            for s in (state, louder)
        )
        assert np.allclose(before, after, atol=1e-3) == normed


def test_greedy_decoding_is_the_likeliest_next_token_again_and_again():
    model = nnx.jit(lambda: LanguageModel(CONFIG, VOCABULARY, rngs=nnx.Rngs(0)))()
    tokens = rows(5, slots=5)[0]
    written = np.asarray(model.greedy(tokens, 4))
    for _ in range(4):
        tokens = np.concatenate([tokens, np.asarray(model.logits(tokens))[:, -1].argmax(-1)[:, None]], axis=1)
    np.testing.assert_array_equal(written, tokens)
