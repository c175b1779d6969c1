from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import KINDS, TOKENS, UNTIED, shaken
from replay import replay, states

from unihetero_jax.generate.choose import choose
from unihetero_jax.generate.decode import Decoding, Ids, Numbers, Plan, advance, prefill
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.generate.requests import Request, left_pad
from unihetero_jax.generate.sampling_options import Choice
from unihetero_jax.model.diffusion.head import DiffusionHead

SHORT, LONG = "What time is it?", "Tell me where on the screen the weather icon is, and in which corner the battery is."
GREEDY, WARM = Choice(), Choice(1.0, 20, 0.9)
NEVER = -5
TEXT = Plan(6, 0, False, False, GREEDY.rule, GREEDY.rule, "none")


@pytest.fixture(scope="module")
def trained(make_trained):
    return make_trained(**UNTIED)


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def models(make_trained):
    """One of each kind; what a diffusion head starts with at zero is shaken."""

    def make(changes):
        made = shaken(make_trained(**UNTIED, **changes))
        return made.model.bind(made.params)

    return {kind: make(changes) for kind, changes in KINDS.items()}


@pytest.fixture(scope="module")
def model(models):
    return models["semantic"]


@partial(jax.jit, static_argnums=(0, 3))
def compiled(model, batch, keys, plan, numbers, ids):
    return Decoding(model, keys, plan, numbers, ids).run(batch)


def some_keys(count, seed=3):
    return jax.random.split(jax.random.key(seed), count)


def run(
    model, prompts, plan, *, marker=NEVER, stops=(NEVER,), text=GREEDY, codes=GREEDY, guidance=2.0, keys=None, slots=96
):
    batch = left_pad(prompts, len(prompts), slots, max(1, *(len(prompt.images) for prompt in prompts)), 32)
    keys = some_keys(len(prompts) // plan.rows_per_request) if keys is None else keys
    numbers = Numbers(jnp.asarray(text.numbers), jnp.asarray(codes.numbers), jnp.float32(guidance))
    ids = Ids(jnp.asarray(stops), *map(jnp.int32, (marker, 6, 5)))
    return jax.tree.map(np.asarray, compiled(model, batch, keys, plan, numbers, ids))


@partial(jax.jit, static_argnums=0, static_argnames="guidance")
def predicted(model, hidden_VD, keys_V, patch_V, free_VD=None, *, guidance):
    """What is drawn at some slots, by the formulas; codes by a warm choice."""
    if isinstance(model.pixel_head, DiffusionHead):
        free = None if free_VD is None else free_VD[:, None]
        options = {"first": patch_V[:, None], "unconditional": free, "guidance": guidance}
        return model.sample_latents(hidden_VD[:, None], keys_V, **options)[:, 0]
    heads = {"semantic": model.semantic_head, "codes": model.code_head, "latents": model.pixel_head}
    predict = heads[model.generation]
    led = predict(hidden_VD)
    if free_VD is not None:
        led = predict(free_VD) + guidance * (led - predict(free_VD))
    return led if model.generation != "codes" else choose(led, keys_V, WARM.rule, WARM.numbers)


def third_token(model, prompts):
    """A token that the first prompt's text has as its third, and not before."""
    tokens = run(model, prompts, TEXT).ids[0]
    assert tokens[2] not in tokens[:2]  # or the test would see no order
    return int(tokens[2])


def test_cached_states_equal_uncached_ones_whatever_the_padding(predictor, model, images):
    prompts = [predictor.prompt(SHORT, images[0]), predictor.prompt(LONG), predictor.prompt("Sure.", images[1])]
    batch = left_pad(prompts, 3, 64, 1, 32)
    context = jax.jit(lambda batch: prefill(model, batch, 6))(batch)
    read = jnp.asarray([[40, 50, 60], [70, 80, 90], [100, 110, 120]])
    found = [context.hidden]
    for number, token in enumerate(read):
        x = model.decoder.embed(jnp.broadcast_to(token[:1], (3,)))
        context = advance(model, context, x, jnp.int32(64 + number), jnp.ones(3, bool))
        found.append(context.hidden)
    for row, prompt in enumerate(prompts):
        expected = states(model, prompt, [model.decoder.embed(token[0]) for token in read])
        np.testing.assert_allclose(jnp.stack([state[row] for state in found]), expected, atol=1e-4)


def test_an_ended_row_neither_moves_nor_reads_what_others_go_on_with(predictor, model):
    prompts = [predictor.prompt(SHORT), predictor.prompt(LONG)]
    context = jax.jit(lambda batch: prefill(model, batch, 4))(left_pad(prompts, 2, 64, 1, 32))
    first = model.decoder.embed(jnp.asarray([40, 40]))
    second = model.decoder.embed(jnp.asarray([50, 50]))
    paused = advance(model, context, first, jnp.int32(64), jnp.asarray([True, False]))
    np.testing.assert_array_equal(paused.hidden[1], context.hidden[1])
    after = advance(model, paused, second, jnp.int32(65), jnp.ones(2, bool))
    np.testing.assert_allclose(after.hidden[0], states(model, prompts[0], [first[0], second[0]])[-1], atol=1e-4)
    np.testing.assert_allclose(after.hidden[1], states(model, prompts[1], [second[1]])[-1], atol=1e-4)


def test_text_is_the_likeliest_token_each_time(predictor, model, images):
    prompts = [predictor.prompt(LONG, images[0]), predictor.prompt(SHORT, images[1])]
    text = run(model, prompts, TEXT)
    for row, prompt in enumerate(prompts):
        hidden = states(model, prompt, [model.decoder.embed(token) for token in text.ids[row]])
        assert jnp.argmax(model.decoder.logits(hidden[:-1]), axis=-1).tolist() == text.ids[row].tolist()
    assert text.length.tolist() == [6, 6]
    assert text.stop.tolist() == [-1, -1]

    # Each row ends before the first stop id, and the others go on.
    chosen = third_token(model, prompts)
    kept = [row.tolist().index(chosen) if chosen in row else 6 for row in text.ids]
    stopped = run(model, prompts, TEXT, stops=[900, chosen])
    assert stopped.length.tolist() == kept
    assert stopped.stop[0] == chosen
    for row, count in enumerate(kept):
        assert stopped.ids[row].tolist() == [*text.ids[row, :count].tolist(), *[0] * (6 - count)]


@pytest.mark.parametrize("kind", ["semantic", "codes", "latents"])
def test_text_and_pictures_in_one_row_are_what_one_uncached_pass_predicts(models, predictor, kind, images):
    model = models[kind]
    prompts = [predictor.prompt(LONG), predictor.prompt(SHORT, images[1])]
    marker = third_token(model, prompts)
    plan = Plan(6, 2, False, False, GREEDY.rule, WARM.rule, "none")
    keys = some_keys(2)
    made = run(model, prompts, plan, marker=marker, codes=WARM, keys=keys)
    assert made.images[0] >= 1
    assert made.images.sum() >= 2 or made.text_tokens[1] == 6
    for row, prompt in enumerate(prompts):
        ids = made.ids[row, : made.length[row]]
        hidden, where = replay(model, prompt, ids, made.predicted[row], marker)
        text, drawn = np.flatnonzero(where[:, 0] < 0), np.flatnonzero(where[:, 0] >= 0)
        assert len(drawn) == made.images[row] * TOKENS
        # Behind a picture's last slot comes its end; everywhere else the likeliest token.
        likeliest = np.asarray(jnp.argmax(model.decoder.logits(hidden), axis=-1))[text]
        assert ids[text].tolist() == np.where(where[text - 1, 1] == TOKENS - 1, 5, likeliest).tolist()
        place = tuple(where[drawn].T)
        np.testing.assert_allclose(made.hidden[row][place], hidden[drawn], atol=1e-4)
        keys_V = jax.vmap(jax.random.fold_in, (None, 0))(keys[row], drawn)
        expected = predicted(model, hidden[drawn], keys_V, where[drawn, 1], guidance=1.0)
        np.testing.assert_allclose(made.predicted[row][place], expected, atol=1e-4)
    if kind == "codes":
        assert len(np.unique(made.predicted[0, 0])) > 5  # drawn by chance, or the test would see no keys


def test_rows_end_each_in_its_own_way(predictor, model):
    prompts = [predictor.prompt(LONG), predictor.prompt(SHORT)]
    text = run(model, prompts, TEXT).ids
    marker = third_token(model, prompts)
    plan = partial(Plan, 6, text=GREEDY.rule, codes=GREEDY.rule, guidance="none")

    # No picture is left: the marker ends the row, and is not kept.
    ended = run(model, prompts, plan(0, False, False), marker=marker)
    assert (ended.stop[0], ended.length[0]) == (marker, 2)

    # With its last picture, before the end marker.
    drawn = run(model, prompts, plan(1, False, True), marker=marker)
    assert (drawn.stop[0], drawn.length[0], drawn.text_tokens[0]) == (-1, 2 + 1 + TOKENS, 2)
    assert drawn.ids[0, -1] == 0
    assert not drawn.forced[0].any()

    # A picture in place of the end; and, where nothing ends the row, behind its last token.
    forced = run(model, prompts, plan(1, True, True), stops=[text[0, 1]])
    assert (forced.text_tokens[0], forced.images[0], forced.forced[0, 0], forced.stop[0]) == (1, 1, True, -1)
    late = run(model, prompts, plan(1, True, True), stops=[NEVER])
    assert late.text_tokens.tolist() == [6, 6]
    assert late.length.tolist() == [6 + 1 + TOKENS] * 2
    assert late.forced.all()

    # What was forced is followed by more text, unless the limit is reached.
    more = run(model, prompts, plan(1, True, False), stops=[text[0, 1]])
    assert more.ids[0, 1 + 1 + TOKENS] == 5
    assert more.length[0] > 1 + 1 + TOKENS + 1 or more.stop[0] == text[0, 1]


def test_a_request_takes_its_chances_alone(predictor, model, images):
    prompts = [predictor.prompt(SHORT, images[0]), predictor.prompt(LONG), predictor.prompt("Sure.")]
    hot = Choice(2.0)
    plan = Plan(8, 1, True, False, hot.rule, GREEDY.rule, "none")
    keys = some_keys(3)
    together = run(model, prompts, plan, text=hot, keys=keys)
    moved = run(model, [prompts[2], prompts[0]], plan, text=hot, keys=keys[jnp.asarray([2, 0])], slots=112)
    for here, there in ((2, 0), (0, 1)):
        assert moved.ids[there].tolist() == together.ids[here].tolist()
        np.testing.assert_allclose(moved.predicted[there], together.predicted[here], atol=1e-4)
    others = run(model, prompts, plan, text=hot, keys=some_keys(3, seed=4))
    assert not any((others.ids[row] == together.ids[row]).all() for row in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_leads_away_from_what_is_predicted_without_the_words(models, predictor, kind):
    model = models[kind]
    layout, request = predictor._layout, Request.of(LONG)
    prompt, empty = layout.request(request), layout.request(request, words=False)
    assert len(empty) == 3
    plan = partial(Plan, 1, 1, True, True, GREEDY.rule, WARM.rule)
    drawing = partial(run, model, codes=WARM, keys=(key := some_keys(1)))
    made = drawing([prompt, empty], plan("rows"), guidance=3.0)
    ids = made.ids[0, : made.length[0]]
    given, where = replay(model, prompt, ids, made.predicted[0], ids[1])
    # The other row has not read the word that the model said before the picture: in training it is left out, too.
    free, _ = replay(model, empty, ids[1:], made.predicted[0], ids[1])
    keys_V = jax.vmap(jax.random.fold_in, (None, 0))(key[0], np.arange(2, 2 + TOKENS))
    expected = predicted(model, given[2:-1], keys_V, where[2:, 1], free[1:-1], guidance=3.0)
    np.testing.assert_allclose(made.predicted[0, 0], expected, atol=1e-3)

    # At scale 1 it is what one row draws.
    plain = drawing([prompt], plan("none"))
    np.testing.assert_allclose(
        drawing([prompt, empty], plan("rows"), guidance=1.0).predicted, plain.predicted, atol=1e-3
    )
    assert not np.allclose(made.predicted, plain.predicted, atol=1e-2)


def test_a_heads_own_null_condition_needs_no_second_row(models, predictor):
    model = models["latents"]
    prompt, key = predictor.prompt(LONG), some_keys(1)
    plan = partial(Plan, 1, 1, True, True, GREEDY.rule, GREEDY.rule)
    made = run(model, [prompt], plan("head"), guidance=3.0, keys=key)
    ids = made.ids[0, : made.length[0]]
    hidden, where = replay(model, prompt, ids, made.predicted[0], ids[1])
    keys_V = jax.vmap(jax.random.fold_in, (None, 0))(key[0], np.arange(2, 2 + TOKENS))
    expected = predicted(model, hidden[2:-1], keys_V, where[2:, 1], guidance=3.0)
    np.testing.assert_allclose(made.predicted[0, 0], expected, atol=1e-4)
    configured, plain = (run(model, [prompt], plan(kind), keys=key) for kind in ("configured", "none"))
    np.testing.assert_allclose(configured.predicted, plain.predicted, atol=1e-5)
    assert not np.allclose(made.predicted, plain.predicted, atol=1e-2)
