import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import DIFFUSION, KINDS, TOKENS, UNTIED, shaken
from PIL import Image
from replay import states

from unihetero_jax.data.packing.packed_batch import RowShape, pack
from unihetero_jax.data.packing.sample import record_sample
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.errors import UsageError
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.generate.requests import Picture, Request, Turn, cut
from unihetero_jax.generate.sampling_options import Choice, Sampling
from unihetero_jax.losses.semantic.loss import semantic_target
from unihetero_jax.model.unified import at_slots, visual_slots

SHORT, LONG = "What time is it?", "Tell me where on the screen the weather icon is, and in which corner the battery is."


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
def model(trained):
    return trained.model.bind(trained.params)


class Renamed:
    """A tokenizer in which a marker has another id."""

    def __init__(self, tokenizer, **ids):
        self._tokenizer = tokenizer
        vars(self).update(ids)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def first_token(trained, predictor, request):
    """What the model says first."""
    model = trained.model.bind(trained.params)
    hidden = states(model, predictor.prompt(request), [])[-1]
    return int(jnp.argmax(model.decoder.logits(hidden)))


def test_prompts_are_laid_out_as_in_training(trained, predictor, watch_data):
    sources = {task: Dataset(watch_data).split(f"test_{task}") for task in ("vqa", "generation")}
    per_image = dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), TOKENS)
    for task in ("vqa", "generation"):
        record = sources[task][0]
        slots = record_sample(record, trained.tokenizer, per_image, 32)
        words = str(record["conversations"]["value"][0], "utf-8").replace("<image>", "").strip()
        prompt = predictor.prompt(words, slots.images[0] if task == "vqa" else None)
        assert prompt.tokens.tolist() == slots.tokens[: len(prompt)].tolist()
        batch = pack([[slots]], RowShape(len(slots), 1, 32))
        assert prompt.patch.tolist() == batch["patch"][0, : len(prompt)].tolist()
        assert prompt.tokens[-1] == trained.tokenizer.assistant_id


def test_teacher_forced_predictions_are_those_of_training(trained, predictor, model, watch_data):
    record = Dataset(watch_data).split("test_generation")[1]
    per_image = dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), TOKENS)
    slots = record_sample(record, trained.tokenizer, per_image, 32)
    batch = pack([[slots]], RowShape(160, 1, 32))
    hidden = at_slots(model.hidden(batch, model.encode(batch)), visual_slots(batch, TOKENS).predictor)
    request, phrase = (str(text, "utf-8").replace("<image>", "").strip() for text in record["conversations"]["value"])
    image = np.asarray(Image.open(io.BytesIO(record["image"])))
    forced = predictor.teacher_forced([request], [phrase], image[None])
    np.testing.assert_allclose(forced.embeddings, model.predict_semantics(hidden), atol=1e-4)
    pixels = np.clip(
        np.round((np.asarray(model.sample_latents(hidden, None))[0, 0].reshape(8, 8, 3) + 1) * 127.5), 0, 255
    )
    assert np.abs(forced.images[0, :8, :8] - pixels).max() <= 1  # the first patch is the top left one
    semantics = semantic_target(
        trained.config.losses["semantic"],
        model.encode({"images": image[None, None], "role": np.full((1, 1), Role.TARGET)}),
        None,
    )
    np.testing.assert_allclose(predictor.embed(image[None]), semantics[:, 0], atol=1e-5)


def test_a_request_does_not_notice_its_neighbours(predictor, images):
    requests = ["Draw a watch.", "Paint a watch showing 10:08:42 with a sunny icon and the battery at 42%.", SHORT]
    together = predictor.generate_images(requests)
    texts = predictor.answer(images, [SHORT, LONG, "How full is the battery?"])
    assert len(set(texts)) == len(set(together.text)) == 3  # or the test would see no difference
    alone = predictor.generate_images(requests[:1])
    assert alone.text == together.text[:1]
    # Rounding grows from token to token.
    np.testing.assert_allclose(alone.embeddings, together.embeddings[:1], atol=1e-2)
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


def test_a_picture_that_the_model_did_not_ask_for_is_marked(trained, predictor):
    requests = ["Draw a watch.", "Paint one."]
    drawn = predictor.generate_images(requests, limit=5)
    assert drawn.forced.tolist() == [True, True]
    assert drawn.embeddings.shape == (2, TOKENS, 32)
    assert drawn.images.shape == (2, 32, 32, 3)
    text = Sampling(max_tokens=5, max_images=0)
    assert predictor.generate(requests, text)[0].stop == "length"

    # Of a model whose marker is the very token that it writes first, nothing is forced.
    first = first_token(trained, predictor, requests[0])
    willing = Predictor(replace(trained, tokenizer=Renamed(trained.tokenizer, image_start_id=first)))
    drawn = willing.generate_images(requests, limit=5)
    assert not drawn.forced[0]
    assert drawn.text[0] == ""
    assert willing.generate(requests, text)[0].stop == "image"

    # One that ends its turn there did not ask either.
    brief = Predictor(replace(trained, tokenizer=Renamed(trained.tokenizer, end_id=first)))
    assert brief.generate_images(requests, limit=5).forced[0]
    assert brief.generate(requests, text)[0].stop == "end"


def test_without_heads_there_are_no_pictures(make_trained):
    blind = Predictor(make_trained(**{"losses.pixel.weight": 0.0}))
    assert blind.generate_images(["Draw a watch."]).images is None
    understanding = Predictor(make_trained(**{"losses.semantic.weight": 0.0, "losses.pixel.weight": 0.0}))
    assert not understanding.generates_images
    with pytest.raises(ValueError, match="no head that generates images"):
        understanding.generate_images(["Draw a watch."])


def test_eight_devices_predict_what_one_does(make_trained, predictor):
    trained = make_trained(devices=8, **UNTIED)
    assert trained.mesh.size == 8
    requests = ["A watch.", "Two.", LONG]
    drawn, here = Predictor(trained).generate_images(requests), predictor.generate_images(requests)
    assert drawn.text == here.text
    np.testing.assert_allclose(drawn.embeddings, here.embeddings, atol=1e-2)


@pytest.fixture(scope="module")
def author(trained):
    """Of a model whose next token follows from the last: 'a', a picture, 'b', a picture, 'b' and one more picture."""
    coder = trained.tokenizer
    (a,), (b,) = coder.encode("a"), coder.encode("b")
    table = trained.params["decoder"]["embedding"]
    head = jnp.zeros_like(trained.params["decoder"]["head"])
    follows = ((coder.assistant_id, a), (a, coder.image_start_id), (coder.image_end_id, b), (b, coder.image_start_id))
    for last, token in follows:
        head = head.at[:, token].add(100 * table[last])
    # The last token decides, not those before it.
    layers = jax.tree.map(lambda leaf: 0.1 * leaf if leaf.ndim > 2 else leaf, trained.params["decoder"]["layers"])
    decoder = {**trained.params["decoder"], "layers": layers, "head": head}
    return Predictor(replace(trained, params={**trained.params, "decoder": decoder}))


def test_texts_and_pictures_come_in_the_order_they_are_made(author):
    made = author.generate([SHORT, "Draw a watch."], Sampling(max_images=2))
    for each in made:
        assert [segment if isinstance(segment, str) else "picture" for segment in each.segments] == [
            *("a", "picture", "b", "picture", "b")
        ]
        assert (each.text, each.stop) == ("a b b", "image")
        for picture in each.pictures:
            assert not picture.forced
            assert picture.predicted.shape == (TOKENS, 32)
            assert picture.pixels.shape == (32, 32, 3)
    drawn = [picture.predicted for each in made for picture in each.pictures]
    pixels = [picture.pixels for each in made for picture in each.pictures]
    for one in range(4):
        for other in range(one):
            assert not np.allclose(drawn[one], drawn[other], atol=1e-3)
            assert (pixels[one] != pixels[other]).any()
    # Each beside its own pixels, and the same whatever the number of pictures that are decoded together.
    for request, each in zip((SHORT, "Draw a watch."), made, strict=True):
        alone = author.generate([request], Sampling(max_images=2))[0]
        for here, there in zip(alone.pictures, each.pictures, strict=True):
            np.testing.assert_allclose(here.predicted, there.predicted, atol=1e-4)
            assert np.abs(here.pixels.astype(int) - there.pixels).max() <= 1
    short = author.generate([SHORT], Sampling(max_tokens=2, max_images=2))[0]
    assert [segment if isinstance(segment, str) else "picture" for segment in short.segments] == ["a", "picture", "b"]
    assert short.stop == "length"
    stopped = author.generate([SHORT], Sampling(max_images=2, stop_texts=("b",)))[0]
    assert [type(segment) for segment in stopped.segments] == [str, Picture]


def test_the_same_request_gets_the_same_answer_and_another_seed_another(predictor, images):
    one, two = Request.of(images[0], SHORT), Request.of(LONG)
    sampling = Sampling(text=Choice(1.5), max_tokens=10, max_images=0)
    alone = predictor.generate([one], sampling)[0].text
    assert [made.text for made in predictor.generate([two, one, one], sampling)][1:] == [alone, alone]
    assert predictor.generate([replace(one, seed=1)], sampling)[0].text != alone
    assert predictor.generate([one], replace(sampling, seed=1))[0].text != alone
    assert predictor.generate([Request.of(images[1], SHORT)], sampling)[0].text != alone


def test_several_images_in_a_conversation(predictor, images):
    earlier = (Turn("human", ("Draw it.",)), Turn("gpt", ("Here.", images[0])))
    request = Request((*earlier, Turn("human", (images[1], "and", images[2], "?"))))
    prompt = predictor._layout.request(request)
    coder = predictor.tokenizer
    picture = [coder.image_start_id, *[coder.image_pad_id] * TOKENS, coder.image_end_id]
    said = [coder.encode(text) for text in ("Draw it.", "Here.", "and", "?")]
    turns = [coder.begin_id, coder.user_id, *said[0], coder.assistant_id, *said[1], *picture, coder.end_id]
    turns += [coder.user_id, *picture, *said[2], *picture, *said[3], coder.assistant_id]
    assert prompt.tokens.tolist() == turns
    assert prompt.roles == (Role.TARGET, Role.INPUT, Role.INPUT)
    assert prompt.image[prompt.tokens == coder.image_pad_id].tolist() == [0] * TOKENS + [1] * TOKENS + [2] * TOKENS

    sampling = Sampling(text=Choice(1.5), max_tokens=10, max_images=0)
    answers = predictor.generate([SHORT, request], sampling)
    swapped = Request((*earlier, Turn("human", (images[2], "and", images[1], "?"))))
    assert answers[1].text == predictor.generate([request], sampling)[0].text
    assert answers[1].text != predictor.generate([swapped], sampling)[0].text


def test_what_stops_an_answer(trained, predictor):
    free = predictor.generate([SHORT], Sampling(max_tokens=6, max_images=0))[0]
    assert free.stop == "length"
    assert len(free.text) > 2
    middle = free.text[1:3]
    cut = predictor.generate([SHORT], Sampling(max_tokens=6, max_images=0, stop_texts=("no such text", middle)))[0]
    assert (cut.text, cut.stop) == (free.text[: free.text.index(middle)].strip(), "stop")
    first = first_token(trained, predictor, SHORT)
    at_once = predictor.generate([SHORT], Sampling(max_tokens=6, max_images=0, stop_ids=(first,)))[0]
    assert (at_once.segments, at_once.stop) == ((), "stop")
    brief = Predictor(replace(trained, tokenizer=Renamed(trained.tokenizer, end_id=first)))
    assert brief.generate([SHORT], Sampling(max_tokens=6, max_images=0))[0].stop == "end"


def test_texts_are_cut_as_they_are_written_and_stripped_then():
    picture = Picture(np.zeros((1, 1)), None, False)
    assert cut(["Here:\n", picture, "Done."], ("\n",)) == (("Here:",), True)
    assert cut([" Here: ", picture, "  "], ("\n",)) == (("Here:", picture), False)


def test_guidance_reaches_the_picture(predictor):
    sampling = Sampling(max_tokens=2, require_image=True)
    plain, one, led = (
        predictor.generate([LONG], replace(sampling, guidance=scale))[0].pictures[0] for scale in (None, 1.0, 4.0)
    )
    np.testing.assert_array_equal(plain.predicted, one.predicted)
    assert not np.allclose(led.predicted, plain.predicted, atol=1e-3)


def test_the_guidance_of_a_diffusion_head_behind_embeddings_is_set_when_drawing(make_trained):
    changes = {f"losses.pixel.{name}": value for name, value in {"kind": "diffusion", **DIFFUSION}.items()}
    predictor = Predictor(shaken(make_trained(**changes)))
    sampling = Sampling(max_tokens=2, require_image=True)
    plain, one, led = (
        predictor.generate([LONG], replace(sampling, pixel_guidance=scale))[0].pictures[0] for scale in (None, 1.0, 4.0)
    )
    np.testing.assert_array_equal(plain.predicted, led.predicted)
    assert np.abs(plain.pixels.astype(int) - one.pixels).max() <= 1
    assert (plain.pixels != led.pixels).any()


def test_settings_that_cannot_work_are_refused(predictor, images, make_trained):
    for wrong, message in (
        ({"text": Choice(-1.0)}, r"sampling\.text\.temperature=-1\.0: expected 0, or 0\.001 or more"),
        ({"text": Choice(1e-9)}, r"sampling\.text\.temperature=1e-09"),
        ({"text": Choice(float("nan"))}, r"sampling\.text\.temperature=nan"),
        ({"codes": Choice(1.0, -3)}, r"sampling\.codes\.top_k=-3: expected 1 or more, or 0"),
        ({"codes": Choice(1.0, 0, 0.0)}, r"sampling\.codes\.top_p=0\.0: expected above 0, at most 1"),
        ({"guidance": -1.0}, r"sampling\.guidance=-1\.0: expected 0 or more"),
        ({"pixel_guidance": -1.0}, r"sampling\.pixel_guidance=-1\.0: expected 0 or more"),
        ({"pixel_guidance": 2.0}, r"sampling\.pixel_guidance=2\.0: expected None; only a diffusion head"),
        ({"seed": -1}, r"sampling\.seed=-1: expected 0 to 4294967295"),
        ({"max_tokens": 0}, r"sampling\.max_tokens=0: expected 1 or more"),
        ({"max_images": -1}, r"sampling\.max_images=-1: expected 0 or more"),
        ({"max_images": 0, "require_image": True}, r"sampling\.max_images=0: expected 1 or more"),
        ({"stop_texts": ("",)}, r"sampling\.stop_texts=\('',\): expected no empty text"),
        ({"stop_texts": "END"}, r"sampling\.stop_texts='END': expected a list or tuple of texts"),
    ):
        with pytest.raises(UsageError, match=message):
            predictor.generate([SHORT], Sampling(**wrong))
    with pytest.raises(UsageError, match=r"an image of shape \(16, 32, 3\), uint8, .* expected \(32, 32, 3\), uint8"):
        predictor.generate([Request.of(images[0][:16], SHORT)])
    with pytest.raises(UsageError, match=r"a turn is from 'user': expected 'human' or 'gpt'"):
        predictor.generate([Request((Turn("user", (SHORT,)),))])
    with pytest.raises(UsageError, match=r"a list in a request: expected a str, or an image as a NumPy array"):
        predictor.generate([Request.of([0, 1], SHORT)])
    understanding = Predictor(make_trained(**{"losses.semantic.weight": 0.0, "losses.pixel.weight": 0.0}))
    with pytest.raises(UsageError, match="no head that generates images"):
        understanding.generate([SHORT], Sampling(require_image=True))


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_codes_and_latents_become_pictures(make_trained, images, kind):
    trained = shaken(make_trained(**UNTIED, **KINDS[kind]))
    predictor, model = Predictor(trained), trained.model.bind(trained.params)
    requests = ["Draw a watch.", LONG, SHORT]
    drawn = predictor.generate_images(requests, limit=2)
    assert len({each.tobytes() for each in drawn.embeddings}) == 3  # or the test would see no difference
    if kind == "latents":  # with its noise
        spread = Predictor(shaken(make_trained(8, **UNTIED, **KINDS[kind]))).generate_images(requests, limit=2)
        np.testing.assert_allclose(spread.embeddings, drawn.embeddings, atol=1e-3)

    # Vectors of what was drawn, and the pictures that they stand for.
    made = jnp.asarray(drawn.embeddings)
    if kind == "codes":
        table = model.tower_of_targets.codes(jnp.arange(50))
        made = jnp.argmax(made @ table.T, axis=-1)
        np.testing.assert_allclose(table[made], drawn.embeddings, atol=1e-5)
    expected = np.asarray(jax.jit(lambda made: model.pictures(made, None, None))(made)).astype(int)
    assert np.abs(drawn.images - expected).max() <= 1

    # What evaluators compare them with.
    role = np.full((3, 1), Role.TARGET, np.int8)
    true = jax.jit(model.encode)({"images": images[:, None], "role": role}).targets.features[:, 0]
    np.testing.assert_allclose(predictor.embed(images), true, atol=1e-5)
    forced = predictor.teacher_forced(requests, ["Here."] * 3, images)
    assert forced.embeddings.shape == true.shape == drawn.embeddings.shape
    assert forced.images.shape == (3, 32, 32, 3)


def test_without_a_tower_of_its_own_a_model_still_draws_from_words(make_trained, images):
    sizes = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    vision = {f"model.understanding_tower.{name}": size for name, size in sizes.items()}
    without = {"data.features": "stored", "model.understanding_tower.cached": True}
    cached = Predictor(make_trained(**UNTIED, **vision, **without, **{"model.understanding_tower.kind": "siglip"}))
    sampling = Sampling(max_tokens=2, require_image=True)
    assert cached.generate(["Draw a watch."], sampling)[0].pictures[0].predicted.shape == (TOKENS, 32)
    with pytest.raises(UsageError, match=r"config\.model\.understanding_tower\.cached=True: .* of text alone"):
        cached.answer(images[:1], [SHORT])
    # A tower that makes pictures of codes is there: it looks for itself.
    codes = {**KINDS["codes"], "model.generation_tower.cached": True, "data.features": "stored"}
    own = Predictor(make_trained(**UNTIED, **codes))
    assert own.embed(images[:1]).shape == (1, TOKENS, 8)


def test_scores_are_those_of_the_unpadded_rows(trained, predictor, model, images):
    requests = [Request.of(images[0], SHORT), Request.of(LONG), Request.of(images[1], LONG)]
    answers = ["12:30:00", "top-left, and the battery is in the bottom-right corner of the screen", ""]
    found = predictor.score(requests, answers)
    for request, answer, made in zip(requests, answers, found, strict=True):
        ids = [*trained.tokenizer.encode(answer), trained.tokenizer.end_id]
        later = np.asarray(model.decoder.embed(jnp.asarray(ids)))
        hidden = states(model, predictor._layout.request(request), later)[:-1]
        logits = model.decoder.logits(hidden).astype(jnp.float32)
        expected = jax.nn.log_softmax(logits)[jnp.arange(len(ids)), jnp.asarray(ids)]
        assert made.tokens == len(ids)
        np.testing.assert_allclose(made.log_likelihood, expected.sum(), rtol=2e-5)
        assert made.greedy == bool((jnp.argmax(logits, axis=-1) == jnp.asarray(ids)).all())


def test_what_the_model_says_is_what_it_finds_likeliest(predictor, images):
    [said] = predictor.answer(images[:1], [SHORT], limit=4)
    request = Request.of(images[0], SHORT)
    other = "sunny" if said != "sunny" else "cloudy"
    [own, another] = predictor.score([request, request], [said, other])
    assert own.log_likelihood / own.tokens > another.log_likelihood / another.tokens
    assert not another.greedy
    with pytest.raises(UsageError, match="an image of shape"):
        predictor.score([Request.of(images[0, :8], SHORT)], ["sunny"])
