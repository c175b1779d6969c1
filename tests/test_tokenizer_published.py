"""A SentencePiece model that somebody else trained, used as it is."""

from __future__ import annotations

import io
import pickle
import random
import types

import pytest
import sentencepiece

from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import MARKERS, Tokenizer

TEXTS = [f"What time is it? It is {i % 13:02d}:{i * 7 % 60:02d} and the sky is blue." for i in range(200)]


def publish(folder, **options):
    """As Llama's: byte fallback, a space in front of every text, unknown 0, begin 1, end 2, no padding."""
    model = io.BytesIO()
    settings = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    settings |= {"model_type": "bpe", "vocab_size": 320}
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        minloglevel=3,
        num_threads=1,
        **{**settings, **options},
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return Tokenizer.load(folder / "tokenizer.model"), sentencepiece.SentencePieceProcessor(
        model_proto=model.getvalue()
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("published"))


def markers_of(tokenizer):
    names = ("image_start_id", "image_end_id", "image_pad_id", "user_id", "assistant_id")
    return [getattr(tokenizer, name) for name in names]


def test_its_ids_stay_and_the_markers_come_behind(published):
    tokenizer, plain = published
    for text in TEXTS[:20]:
        assert tokenizer.encode(text) == plain.encode(text)
    assert markers_of(tokenizer) == [320, 321, 322, 323, 324]
    assert tokenizer.vocabulary_size == 325
    assert (tokenizer.unknown_id, tokenizer.begin_id, tokenizer.end_id) == (0, 1, 2)
    assert plain.pad_id() == -1
    assert tokenizer.pad_id == 0


@pytest.mark.parametrize("text", ["What time?", "  two  spaces ", "10:08 — été 时间 🕙\n", "".join(MARKERS), "</s>"])
def test_text_survives_and_places_no_marker(published, text):
    tokenizer, _ = published
    ids = tokenizer.encode(text)
    assert not {1, 2, *markers_of(tokenizer)}.intersection(ids)
    assert tokenizer.decode(ids) == text


def test_markers_are_silent_and_other_ids_unknown(published):
    tokenizer, plain = published
    word = tokenizer.encode("blue")
    assert tokenizer.decode([*markers_of(tokenizer), 1, *word, 2]) == "blue"
    assert tokenizer.decode([*word, 325]) == plain.decode([*word, 0]) != "blue"
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.encode(TEXTS[0]), markers_of(again)) == (tokenizer.encode(TEXTS[0]), markers_of(tokenizer))


def test_what_begins_and_ends_is_added_where_it_is_missing(tmp_path):
    tokenizer, _ = publish(tmp_path, bos_id=-1, eos_id=-1, pad_id=3)
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.pad_id) == (325, 326, 3)
    assert tokenizer.vocabulary_size == 327
    assert tokenizer.decode([325, *tokenizer.encode("blue"), 326]) == "blue"


def test_a_piece_that_a_text_can_spell_is_no_marker(tmp_path):
    tokenizer, plain = publish(tmp_path, user_defined_symbols=["<image_start>"], control_symbols=["<user>"])
    assert tokenizer.image_start_id == 320 != plain.piece_to_id("<image_start>")
    assert tokenizer.user_id == plain.piece_to_id("<user>") < 320
    assert tokenizer.image_start_id not in tokenizer.encode("an <image_start> here")


def test_a_file_without_pieces_is_one_clear_line(tmp_path):
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(UsageError, match=r"empty\.model is no tokenizer: ") as caught:
        Tokenizer.load(tmp_path / "empty.model")
    assert "\n" not in str(caught.value)


def words(seed):
    """A long text of words, runs of spaces, bytes, digits and the sign of a space itself."""
    rng = random.Random(seed)
    known = " ".join(TEXTS[:13]).split(" ")
    odd = ["", "été", "时间", "🕙🕙", "\n", "\t", "\x00", "\u2581", "\u2581a", "</s>", "x" * 70, "e\u0301", "\u3000"]
    return " ".join(rng.choice(known if rng.random() < 0.8 else odd) for _ in range(rng.randint(20, 60)))


@pytest.mark.parametrize(
    ("options", "by_words"),
    [
        ({}, True),
        ({"add_dummy_prefix": False}, True),
        ({"byte_fallback": False}, True),
        ({"add_dummy_prefix": False, "split_by_whitespace": False}, False),
        ({"user_defined_symbols": ["is it?\u2581It"]}, False),
        ({"allow_whitespace_only_pieces": True}, True),
        ({"treat_whitespace_as_suffix": True}, False),
        ({"remove_extra_whitespaces": True}, False),
        ({"normalization_rule_name": "nfkc"}, False),
        ({"model_type": "unigram", "vocab_size": 312}, False),
    ],
)
def test_long_texts_are_encoded_as_the_library_does_it(tmp_path, options, by_words):
    tokenizer, plain = publish(tmp_path, **options)
    assert tokenizer._words_alone == by_words
    for seed in range(300):
        text = words(seed)
        assert tokenizer.encode(text) == plain.encode(text), text


def test_words_that_pieces_span_are_not_encoded_alone(tmp_path):
    """The test above can fail: with a model of phrases, words alone give other ids."""
    tokenizer, plain = publish(tmp_path, add_dummy_prefix=False, split_by_whitespace=False)
    tokenizer._words_alone = True
    assert any(tokenizer.encode(words(seed)) != plain.encode(words(seed)) for seed in range(20))


def test_without_a_reader_of_models_texts_are_encoded_whole(tmp_path, monkeypatch):
    """What reads a model's settings refuses a protobuf that is older than its own."""

    def refuse(name):
        raise TypeError(f"{name}: an old protobuf")

    monkeypatch.setattr("unihetero_jax.tokenizer.sentencepiece.importlib", types.SimpleNamespace(import_module=refuse))
    tokenizer, plain = publish(tmp_path)
    assert not tokenizer._words_alone
    assert tokenizer.encode(words(0)) == plain.encode(words(0))
