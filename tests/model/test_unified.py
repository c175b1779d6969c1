"""Towers, adapters and heads together: each side sees by its own tower, and every kind of drawn slot is learned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import matrix
from packed import VOCABULARY, loss_sums
from pairings import TWINS, configure, two_images
from tiny_config import random_params

from unihetero_jax.config import resolve
from unihetero_jax.config.tree import nested
from unihetero_jax.errors import UsageError
from unihetero_jax.losses.semantic.loss import collapse, target_moments
from unihetero_jax.model.build import define
from unihetero_jax.model.unified import visual_slots, with_noise


@functools.cache
def parts(name: str):
    """(config, definition, parameters, a batch) of a twin."""
    config = configure(name)
    model = define(config, VOCABULARY)
    return config, model, *jax.tree.map(jnp.asarray, (random_params(model.shapes()), two_images(config)))


def sums(name: str, params, batch, key=None):
    config, model, _, _ = parts(name)
    return jax.jit(lambda *arrays: loss_sums(config, model.bind(arrays[0]), arrays[1], key=key)[0])(params, batch)


@pytest.mark.parametrize("name", matrix(TWINS, fast=("siglip_vq", "unihetero", "latents", "dit")))
def test_each_part_learns_from_what_is_said_to_reach_it(name):
    config, _, params, batch = parts(name)
    gradients = jax.jit(jax.grad(lambda params: sum(sums(name, params, batch, jax.random.key(0)).values())))(params)
    moved = {part for part, tree in gradients.items() if any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))}
    expected = {"decoder", "understanding_adapter", "understanding_tower"}
    heads = {"semantic": "semantic_head", "codes": "code_head", "pixel": "pixel_head"}
    expected |= {head for loss, head in heads.items() if loss in config.losses}
    if not config.model.same_tower:
        # Raw pixels have no parameters.
        expected |= {"generation_adapter", "generation_tower"} & set(params)
    assert moved == expected
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", ["siglip_vq", "vq_vq", "unihetero", "latents"])
def test_what_follows_a_drawn_token_depends_on_it_and_what_predicts_it_does_not(name):
    _, model, params, batch = parts(name)
    bound = model.bind(params)
    hidden = jax.jit(lambda batch: model.bind(params).hidden(batch, model.bind(params).encode(batch)))
    slots = visual_slots(batch, bound.target_tokens)
    first = int(slots.predictor[0, -bound.target_tokens])
    changed = {**batch, "images": batch["images"].at[0, 1].set(255 - batch["images"][0, 1])}
    before, after = np.asarray(hidden(batch)), np.asarray(hidden(changed))
    np.testing.assert_allclose(after[0, : first + 1], before[0, : first + 1], atol=1e-5)
    assert np.abs(after[0, first + 2 :] - before[0, first + 2 :]).max() > 1e-3
    np.testing.assert_allclose(after[1:], before[1:], atol=1e-5)


def test_an_image_that_is_shown_is_seen_by_the_understanding_side_alone():
    _, model, params, batch = parts("siglip_vq")
    seen = jax.jit(lambda params, batch: model.bind(params).inputs(batch, model.bind(params).encode(batch)))
    before = np.asarray(seen(params, batch))
    shaken = {**params, "generation_tower": jax.tree.map(lambda leaf: leaf + 1.0, params["generation_tower"])}
    shaken["generation_adapter"] = jax.tree.map(lambda leaf: leaf + 1.0, params["generation_adapter"])
    after = np.asarray(seen(shaken, batch))
    moved = np.abs(after - before).max(axis=-1) > 1e-4
    np.testing.assert_array_equal(moved, np.asarray(batch["image"] == 1))


def test_a_tower_on_both_sides_has_one_adapter_or_two():
    batch = jax.tree.map(jnp.asarray, two_images(configure("siglip_siglip")))

    def moved(adapter, **changes):
        model = define(configure("siglip_siglip", **changes), VOCABULARY)
        params = jax.tree.map(jnp.asarray, random_params(model.shapes()))
        seen = jax.jit(lambda params: model.bind(params).inputs(batch, model.bind(params).encode(batch)))
        shaken = {**params, adapter: jax.tree.map(lambda leaf: leaf + 1.0, params[adapter])}
        return np.abs(np.asarray(seen(shaken)) - np.asarray(seen(params))).max(axis=-1) > 1e-4

    image = np.asarray(batch["image"])
    np.testing.assert_array_equal(moved("understanding_adapter"), image >= 0)
    apart = {"model__share_adapter": False, "model__generation_adapter__normalize_input": True}
    np.testing.assert_array_equal(moved("understanding_adapter", **apart), image == 0)
    np.testing.assert_array_equal(moved("generation_adapter", **apart), image == 1)


def test_a_distortion_of_one_side_leaves_the_other_as_it_is():
    batch = jax.tree.map(jnp.asarray, two_images(configure("siglip_siglip")))
    _, _, params, _ = parts("siglip_siglip")

    def see(**changes):
        model = define(configure("siglip_siglip", **changes), VOCABULARY)
        return jax.jit(lambda params: model.bind(params).encode(batch))(params)

    plain = see()
    shown = see(model__understanding_distortion__strength=0.3)
    drawn = see(model__generation_distortion__strength=0.3)
    np.testing.assert_allclose(shown.targets.features, plain.targets.features, atol=1e-6)
    np.testing.assert_allclose(drawn.inputs.features, plain.inputs.features, atol=1e-6)
    assert np.abs(shown.inputs.features - plain.inputs.features).max() > 0.1
    assert np.abs(drawn.targets.features - plain.targets.features).max() > 0.1


@pytest.mark.parametrize("name", matrix(["siglip_siglip", "siglip_vq", "unihetero"], fast=["unihetero"]))
def test_features_of_the_batch_replace_the_towers(name):
    config, model, params, batch = parts(name)
    given = dict(batch)
    changes = {"data__features": "made before"}
    for tower in ("understanding_tower", "generation_tower", "pixel_tower"):
        if tower in params:
            made = getattr(model.bind(params), tower)
            section = getattr(config.model, tower)
            made = made.indices(batch["images"])[..., None] if section.kind == "vq16" else made(batch["images"])
            given[f"{tower}_features"] = made.astype(jnp.float32)
            changes |= {f"model__{tower}__cached": True}
            changes |= {f"model__{tower}__sample": False} if section.kind == "kl16" else {}
    cached = configure(name, **changes)
    definition = define(cached, VOCABULARY)
    kept = {part: tree for part, tree in params.items() if part in definition.shapes()}
    assert "understanding_tower" not in kept
    found = jax.jit(lambda *arrays: loss_sums(cached, definition.bind(arrays[0]), arrays[1])[0])(kept, given)
    for part, value in sums(name, params, batch).items():
        np.testing.assert_allclose(found[part], value, rtol=1e-5)
    with pytest.raises(UsageError, match=r"cached=True: the batch has no \w+_tower_features"):
        loss_sums(cached, definition.bind(kept), batch)
    given["understanding_tower_features"] = given["understanding_tower_features"][:, :, 1:]
    with pytest.raises(UsageError, match=r"understanding_tower_features is \(8, 2, 3, .* expected \(8, 2, 4, "):
        loss_sums(cached, definition.bind(kept), given)


@pytest.mark.parametrize("name", matrix(["unihetero", "dit"], fast=["dit"]))
def test_a_detached_diffusion_head_sends_nothing_back_and_half_of_it_half(name):
    _, _, params, batch = parts(name)

    def gradients(factor: float):
        config = configure(name, losses__pixel__gradient_to_decoder=factor)
        model = define(config, VOCABULARY)

        def loss(params):
            return loss_sums(config, model.bind(params), batch, key=jax.random.key(3))[0]["pixel"]

        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))

    none, half, whole = map(gradients, (0.0, 0.5, 1.0))
    for part in ("decoder", "understanding_adapter"):
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(none[part])), part
    assert np.abs(whole["decoder"]["embedding"]).max() > 0
    for part in set(whole) - {"pixel_head"}:
        for left, right in zip(jax.tree.leaves(half[part]), jax.tree.leaves(whole[part]), strict=True):
            # A power of two: the half is exact, up to where the compiler fuses otherwise.
            np.testing.assert_allclose(left, 0.5 * right, rtol=1e-5, atol=1e-6 * np.abs(right).max())
    for left, right in zip(jax.tree.leaves(none["pixel_head"]), jax.tree.leaves(whole["pixel_head"]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5 * np.abs(right).max())


def test_pixel_targets_are_those_of_the_drawn_images():
    config, model, params, batch = parts("latents")
    bound = model.bind(params)
    targets = bound.pixel_targets(batch, bound.encode(batch))
    pictures = bound.decode_latents(targets[:, 1])
    np.testing.assert_array_equal(pictures, batch["images"][:, 1])
    assert targets.shape == (8, 2, 4, config.model.generation_tower.patch_size**2 * 3)


def test_latents_are_sampled_from_their_posterior_in_training_only():
    _, model, params, batch = parts("unihetero")
    bound = model.bind(params)
    visual = bound.encode(batch)
    mean, drawn, again, other = (
        np.asarray(bound.pixel_targets(batch, visual, key))
        for key in (None, jax.random.key(0), jax.random.key(0), jax.random.key(1))
    )
    np.testing.assert_array_equal(drawn, again)
    assert np.abs(drawn - mean).max() > 1e-2
    assert np.abs(drawn - other).max() > 1e-2


@pytest.mark.parametrize("name", ["siglip_vq", "vq_vq"])
def test_target_noise_is_on_target_images_alone_and_in_training_only(name):
    config, _, params, batch = parts(name)
    noisy = dataclasses.replace(config, model=dataclasses.replace(config.model, target_noise=0.5))
    bound, plain = define(noisy, VOCABULARY).bind(params), define(config, VOCABULARY).bind(params)
    visual = bound.encode(batch)
    clean, noised, again = (
        np.asarray(bound.inputs(batch, visual, key)) for key in (None, jax.random.key(0), jax.random.key(0))
    )
    np.testing.assert_array_equal(clean, plain.inputs(batch, visual, jax.random.key(0)))
    np.testing.assert_array_equal(noised, again)
    moved = np.abs(noised - clean).max(axis=-1) > 1e-6
    np.testing.assert_array_equal(moved, np.asarray(batch["image"] == 1), "the second image is the target")
    with_key, without = (
        jax.tree.map(float, loss_sums(noisy, bound, batch, key=key)[0]) for key in (jax.random.key(0), None)
    )
    assert with_key != without
    assert without == jax.tree.map(float, loss_sums(config, plain, batch)[0])


def test_noise_has_the_strength_that_is_asked_for_and_keeps_the_size():
    embeddings = 3.0 * jax.random.normal(jax.random.key(0), (64, 2, 16, 32))
    noised = jnp.arange(2)[None, :] == jnp.ones((64, 1))
    found = with_noise(embeddings, noised, 0.5, jax.random.key(1))
    np.testing.assert_array_equal(found[:, 0], embeddings[:, 0])
    rms = [np.sqrt(np.mean(np.square(array), axis=-1)) for array in (found, embeddings)]
    np.testing.assert_allclose(*rms, rtol=1e-4)
    cosine = np.mean(np.sum(found * embeddings, axis=-1) / (32 * rms[0] * rms[1]), axis=-1)[:, 1]
    level = np.sqrt(1 / np.square(cosine) - 1)
    assert 0.45 < level.max() < 0.6
    assert level.mean() == pytest.approx(0.25, abs=0.05)


def test_collapse_is_seen():
    chance = np.random.default_rng(0)
    weight = jnp.ones((4, 8)).at[0].set(0.0)

    def measured(target):
        return {name: float(value) for name, value in collapse(target_moments(jnp.asarray(target), weight)).items()}

    spread = chance.normal(size=(4, 8, 64))
    units = spread[1:].reshape(-1, 64) / np.linalg.norm(spread[1:].reshape(-1, 64), axis=1, keepdims=True)
    pairs = units @ units.T
    expected = (pairs.sum() - len(units)) / (len(units) ** 2 - len(units))
    found = measured(spread)
    assert found["target_cosine"] == pytest.approx(expected, abs=1e-5)
    assert found["target_variance"] == pytest.approx(
        spread[1:].reshape(-1, 64).var(axis=0).mean() / np.square(spread[1:]).mean(), rel=1e-4
    )
    assert measured(np.ones((4, 8, 64))) == pytest.approx({"target_variance": 0.0, "target_cosine": 1.0}, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model.generation": "codes"}, r"understanding_tower\.kind='patch' .*expected a tower with .*'vq16'"),
        ({"model.generation": "latents"}, r"understanding_tower\.kind='patch' .*pixel latents: 'kl16' or 'pixels'"),
        ({"model.same_tower": False}, r"model\.same_tower: one tower serves both .*config\.model\.generation_tower"),
        (
            {"model.understanding_tower.kind": "siglip", "model.understanding_tower.preset": "siglip-tniy"},
            "siglip-tiny",
        ),
        (
            {
                "model.understanding_tower.kind": "clip",
                "model.understanding_tower.preset": "clip-tiny",
                "model.understanding_tower.width": 32,
            },
            r"understanding_tower\.width=32 beside .*preset='clip-tiny', which fixes it",
        ),
        (
            {"model.generation_tower.kind": "patch", "data.input_role": "both"},
            r"input_role='both' with a config\.model\.generation_tower: .* leave generation_tower out",
        ),
        (
            {"model.share_adapter": False, "data.input_role": "both"},
            r"share_adapter=False with .*input_role='both': every image enters by",
        ),
        (
            {"model.understanding_distortion.strength": 0.2, "data.input_role": "both"},
            r"understanding_distortion differs .*set both alike",
        ),
        ({"model.pixel_tower.distortion.strength": 0.2}, r"model\.pixel_tower\.distortion: .*not distorted"),
        ({"model.pixel_tower.training": "trained"}, r"pixel_tower\.training='trained': expected 'frozen' or 'auto'"),
        ({"losses.codes.weight": 0.2}, r"losses\.codes\.weight=0\.2 .*set generation='codes'"),
        (
            {"model.pixel_tower.kind": "kl16", "model.pixel_tower.preset": "kl16"},
            r"pixel_tower gives 256 latents per image and .* 16 tokens: expected as many",
        ),
        (
            {
                "model.generation": "latents",
                "model.generation_tower.kind": "pixels",
                "losses.semantic.weight": 0.0,
                "losses.pixel.kind": "diffusion",
                "losses.pixel.network": "dit",
            },
            r"network='dit' with .*generation='latents'",
        ),
        ({"model.understanding_distortion.strength": 1.5}, r"understanding_distortion\.strength=1\.5"),
        (
            {"model.understanding_tower.kind": "vq16", "model.understanding_tower.channels": 30},
            r"config\.model\.understanding_tower\.channels=30",
        ),
        ({"model.understanding_tower.capacity": 0.0}, r"capacity=0\.0: expected a value above 0"),
        (
            {
                "losses.text.weight": 0.0,
                "losses.semantic.weight": 0.0,
                "model.generation": "latents",
                "model.generation_tower.kind": "pixels",
            },
            r"no loss with a weight above 0 reaches the decoder",
        ),
        ({"init.tokenizer": True}, r"config\.init\.tokenizer=True without config\.init\.path"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        resolve(nested(changes))
