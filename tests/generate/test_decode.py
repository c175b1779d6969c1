import functools
import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unihetero_jax import objectives
from unihetero_jax.data.packing import RowShape, pack
from unihetero_jax.data.pipeline import task_sources
from unihetero_jax.data.sample import Role, record_sample
from unihetero_jax.generate.decode import Prompt, advance, imagine, left_pad, prefill, write_text
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.model.build import define
from unihetero_jax.model.unified import at_slots, visual_slots

SHORT, LONG = "What time is it?", "Tell me where on the screen the weather icon is, and in which corner the battery is."
TOKENS = 16  # visual tokens of the tiny model


UNTIED = {"model.decoder.tie_embeddings": False}


@pytest.fixture(scope="module")
def trained(make_trained):
    """With tied embeddings a random model repeats its last token, a marker; one without says something."""
    return make_trained(**UNTIED)


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def model(trained):
    return trained.model.bind(trained.params)


@functools.cache
def reader(config, vocabulary):
    """A compiled function: parameters, tokens and patches [1, T], images, embeddings [1, T, D] and where they count
    [T] → hidden states [T, D]. No padding, no cache."""

    definition = define(config, vocabulary)

    def read(params, batch, later, is_later):
        model = definition.bind(params)
        x = jnp.where(is_later[:, None], later, model.inputs(batch, model.see(batch)))
        count = x.shape[1]
        return model.decoder(x, jnp.arange(count)[None], jnp.tril(jnp.ones((1, count, count), bool)))[0][0]

    return jax.jit(read)


def uncached(trained, prompt: Prompt, *later: jax.Array) -> jax.Array:
    """Hidden states of one row without a cache, the last slot of the prompt first; ``later`` embeddings follow it."""
    # Causal, so that what follows on the right changes nothing: all rows are made equally long, and compiled once.
    slots, count = 96, len(prompt)
    tokens = np.zeros(slots, np.int32)
    patch = np.full(slots, -1, np.int32)
    tokens[:count], patch[:count] = prompt.tokens, prompt.patch
    batch = left_pad([Prompt(tokens, patch, prompt.image)], 1, slots, 32)
    embeddings = np.zeros((slots, 32), np.float32)
    if later:
        embeddings[count : count + len(later)] = np.stack(later)
    is_later = (np.arange(slots) >= count) & (np.arange(slots) < count + len(later))
    read = reader(trained.config, trained.tokenizer.vocabulary_size)
    return read(trained.params, batch, embeddings, is_later)[count - 1 : count + len(later)]


def test_cached_states_equal_uncached_ones_whatever_the_padding(trained, predictor, model, images):
    prompts = [predictor.prompt(SHORT, images[0]), predictor.prompt(LONG), predictor.prompt("Sure.", images[1])]
    batch = left_pad(prompts, 3, 64, 32)
    context = jax.jit(lambda batch: prefill(model, batch, 6))(batch)
    read = jnp.asarray([[40, 50, 60], [70, 80, 90], [100, 110, 120]])
    states = [context.hidden]
    for number, token in enumerate(read):
        x = model.decoder.embed(jnp.broadcast_to(token[:1], (3,)))
        context = advance(model, context, x, jnp.int32(64 + number), jnp.ones(3, bool))
        states.append(context.hidden)
    for row, prompt in enumerate(prompts):
        expected = uncached(trained, prompt, *[model.decoder.embed(token[0]) for token in read])
        np.testing.assert_allclose(jnp.stack([state[row] for state in states]), expected, atol=1e-4)


def test_an_ended_row_neither_moves_nor_reads_what_others_go_on_with(trained, predictor, model):
    prompts = [predictor.prompt(SHORT), predictor.prompt(LONG)]
    context = prefill(model, left_pad(prompts, 2, 64, 32), 4)
    first = model.decoder.embed(jnp.asarray([40, 40]))
    second = model.decoder.embed(jnp.asarray([50, 50]))
    paused = advance(model, context, first, jnp.int32(64), jnp.asarray([True, False]))
    np.testing.assert_array_equal(paused.hidden[1], context.hidden[1])
    after = advance(model, paused, second, jnp.int32(65), jnp.ones(2, bool))
    np.testing.assert_allclose(after.hidden[0], uncached(trained, prompts[0], first[0], second[0])[-1], atol=1e-4)
    np.testing.assert_allclose(after.hidden[1], uncached(trained, prompts[1], second[1])[-1], atol=1e-4)


def test_text_is_the_likeliest_token_each_time(trained, predictor, model, images):
    prompts = [predictor.prompt(LONG, images[0]), predictor.prompt(SHORT, images[1])]
    batch = left_pad(prompts, 2, 80, 32)
    write = jax.jit(lambda stops: write_text(model, prefill(model, batch, 6), 80, 6, stops)[0])
    written = write(jnp.asarray([-5]))
    for row, prompt in enumerate(prompts):
        hidden = uncached(trained, prompt, *[model.decoder.embed(token) for token in written.tokens[row]])
        assert jnp.argmax(model.decoder.logits(hidden[:-1]), axis=-1).tolist() == written.tokens[row].tolist()
    assert written.length.tolist() == [6, 6]
    assert written.stop.tolist() == [-1, -1]
    assert len(set(written.tokens[0].tolist())) > 1  # or the test would see no order

    # Each row ends before the first stop id, and the others go on.
    chosen = next(token for token in written.tokens[0] if token not in written.tokens[0, :1])
    kept = [row.tolist().index(chosen) if chosen in row else 6 for row in written.tokens]
    stopped = write(chosen[None])
    assert stopped.length.tolist() == kept
    assert stopped.stop[0] == chosen
    for row, count in enumerate(kept):
        assert stopped.tokens[row].tolist() == [*written.tokens[row, :count].tolist(), *[0] * (6 - count)]


@pytest.mark.parametrize("target", ["input_embedding", "encoder_output"])
def test_imagined_embeddings_are_fed_back_one_after_another(make_trained, target):
    trained = make_trained(
        **{"objectives.semantic.target": target, "model.understanding_adapter.normalize_input": True}
    )
    model, predictor = trained.model.bind(trained.params), Predictor(trained)
    marker = trained.tokenizer.image_start_id
    prompts = [predictor.prompt(SHORT), predictor.prompt(LONG)]
    batch = left_pad(prompts, 2, 48, 32)
    made = jax.jit(lambda: imagine(model, prefill(model, batch, TOKENS + 1), 48, jnp.int32(marker)))()
    fed_back = model.feed_back(made.semantics, jnp.arange(TOKENS))
    for row, prompt in enumerate(prompts):
        hidden = uncached(trained, prompt, model.decoder.embed(jnp.int32(marker)), *fed_back[row])[1:-1]
        np.testing.assert_allclose(made.hidden[row], hidden, atol=1e-4)
        np.testing.assert_allclose(made.semantics[row], model.predict_semantics(hidden), atol=1e-4)


def test_prompts_are_laid_out_as_in_training(trained, predictor, watch_data):
    sources = task_sources(watch_data, "test", ["vqa", "generation"])
    per_image = dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), TOKENS)
    for task in ("vqa", "generation"):
        record = sources[task][0]
        slots = record_sample(record, trained.tokenizer, per_image, 32)
        words = str(record["conversations"]["value"][0], "utf-8").replace("<image>", "").strip()
        prompt = predictor.prompt(words, slots.images[0] if task == "vqa" else None)
        assert prompt.tokens.tolist() == slots.tokens[: len(prompt)].tolist()
        assert prompt.patch.tolist() == slots.patch[: len(prompt)].tolist()
        assert prompt.tokens[-1] == trained.tokenizer.assistant_id


def test_taught_predictions_are_those_of_training(trained, predictor, model, watch_data):
    record = task_sources(watch_data, "test", ["generation"])["generation"][1]
    per_image = dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), TOKENS)
    slots = record_sample(record, trained.tokenizer, per_image, 32)
    batch = pack([[slots]], RowShape(160, 1, 32))
    hidden = at_slots(model.hidden(batch, model.see(batch)), visual_slots(batch, TOKENS).predictor)
    request, phrase = (str(text, "utf-8").replace("<image>", "").strip() for text in record["conversations"]["value"])
    image = np.asarray(Image.open(io.BytesIO(record["image"])))
    taught = predictor.teach([request], [phrase], image[None])
    np.testing.assert_allclose(taught.embeddings, model.predict_semantics(hidden), atol=1e-4)
    pixels = np.clip(np.round((np.asarray(model.predict_pixels(hidden))[0, 0].reshape(8, 8, 3) + 1) * 127.5), 0, 255)
    assert np.abs(taught.images[0, :8, :8] - pixels).max() <= 1  # the first patch is the top left one
    semantics = objectives.semantic_target(
        trained.config.objectives.semantic, model.see({"images": image[None, None], "role": jnp.full((1, 1), 2)}), None
    )
    np.testing.assert_allclose(predictor.embed(image[None]), semantics[:, 0], atol=1e-5)


def test_a_request_does_not_notice_its_neighbours(predictor, images):
    requests = ["Draw a watch.", "Paint a watch showing 10:08:42 with a sunny icon and the battery at 42%.", SHORT]
    together = predictor.draw(requests)
    texts = predictor.answer(images, [SHORT, LONG, "How full is the battery?"])
    assert len(set(texts)) == len(set(together.text)) == 3  # or the test would see no difference
    alone = predictor.draw(requests[:1])
    assert alone.text == together.text[:1]
    np.testing.assert_allclose(alone.embeddings, together.embeddings[:1], atol=1e-4)
    assert np.abs(alone.images[0].astype(int) - together.images[0]).max() <= 1
    assert predictor.answer(images[1:2], [LONG]) == [texts[1]]
    assert predictor.continue_text([SHORT])[0] == predictor.continue_text([LONG, SHORT])[1]


def test_more_requests_than_a_batch_come_back_in_order(predictor, images):
    questions = [f"What is {number}?" for number in range(11)]
    shown = images[np.arange(11) % 3]
    expected = [predictor.answer(shown[n : n + 1], [questions[n]])[0] for n in (0, 4, 10)]
    answers = predictor.answer(shown, questions)
    assert len(answers) == 11
    assert len(set(answers)) > 3
    assert [answers[0], answers[4], answers[10]] == expected


def test_the_second_call_compiles_nothing(make_trained, images):
    # No other test asks for these limits: whatever ran before, the first call of each compiles.
    predictor, later = Predictor(make_trained(**UNTIED)), Predictor(make_trained(**UNTIED))
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    predictor.answer(images[:2], ["Is it raining?", "Sunny?"], limit=9)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        predictor.answer(images[:2], [SHORT, "Where is it?"], limit=9)
        later.answer(images[:2], [SHORT, "Where is it?"], limit=9)  # of another checkpoint of the same run
        assert compiled == []
        predictor.answer(images[:2], [SHORT, "Where is it?"], limit=10)
        assert compiled  # the listener does hear compilations
    finally:
        jax.monitoring.clear_event_listeners()


class Renamed:
    """A tokenizer in which a marker has another id."""

    def __init__(self, tokenizer, **ids):
        self._tokenizer = tokenizer
        vars(self).update(ids)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def test_a_picture_that_the_model_did_not_ask_for_is_marked(trained, predictor):
    requests = ["Draw a watch.", "Paint one."]
    drawn = predictor.draw(requests, limit=5)
    assert drawn.forced.tolist() == [True, True]
    assert drawn.embeddings.shape == (2, TOKENS, 32)
    assert drawn.images.shape == (2, 32, 32, 3)
    assert not predictor.reply(None, requests, 5)[0].wants_picture

    # Of a model whose marker is the very token that it writes first, nothing is forced.
    hidden = uncached(trained, predictor.prompt(requests[0]))[-1]
    first = int(jnp.argmax(trained.model.bind(trained.params).decoder.logits(hidden)))
    willing = Predictor(replace(trained, tokenizer=Renamed(trained.tokenizer, image_start_id=first)))
    drawn = willing.draw(requests, limit=5)
    assert not drawn.forced[0]
    assert drawn.text[0] == ""
    assert willing.reply(None, requests, 5)[0].wants_picture

    # One that ends its turn there did not ask either.
    brief = Predictor(replace(trained, tokenizer=Renamed(trained.tokenizer, end_id=first)))
    assert brief.draw(requests, limit=5).forced[0]
    assert not brief.reply(None, requests, 5)[0].wants_picture


def test_without_heads_there_are_no_pictures(make_trained):
    blind = Predictor(make_trained(**{"objectives.pixel.weight": 0.0}))
    assert blind.draw(["Draw a watch."]).images is None
    understanding = Predictor(make_trained(**{"objectives.semantic.weight": 0.0, "objectives.pixel.weight": 0.0}))
    assert not understanding.draws
    with pytest.raises(ValueError, match="no semantic head"):
        understanding.draw(["Draw a watch."])


def test_eight_devices_predict_what_one_does(make_trained, predictor):
    trained = make_trained(devices=8, **UNTIED)
    assert trained.mesh.size == 8
    requests = ["A watch.", "Two.", LONG]
    drawn, here = Predictor(trained).draw(requests), predictor.draw(requests)
    assert drawn.text == here.text
    np.testing.assert_allclose(drawn.embeddings, here.embeddings, atol=1e-4)
