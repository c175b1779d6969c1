"""Texts as people write, copy and break them: right, or left out for a reason; and no text ever places a marker."""

from __future__ import annotations

import collections
import io
import time

import pytest
import sentencepiece
import tokenizers
from coder import WordCoder, arrays_of, picture
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from unihetero_jax.data.packing.sample import record_sample
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.text import MAX_CHARACTERS, clean_text, read_text
from unihetero_jax.tokenizer.sentencepiece import MARKERS, Tokenizer
from unihetero_jax.tokenizer.tokenizer_json import JsonTokenizer

CODER = WordCoder()
TEXTS = [f"What time is it? It is {i % 13:02d}:{i * 7 % 60:02d} and the sky is blue." for i in range(200)]
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")


def json_tokenizer(model, pre, decoder=None) -> JsonTokenizer:
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre
    if decoder is not None:
        made.decoder = decoder
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return JsonTokenizer(made.to_str())


def published(**options) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS), model_writer=model, model_type="bpe", vocab_size=320, minloglevel=3, **options
    )
    return Tokenizer(model.getvalue())


@pytest.fixture(scope="module")
def coders(tmp_path_factory):
    """Every kind of tokenizer; of published ones also those whose vocabulary has special tokens as words."""
    words = {name: number for number, name in enumerate([*SPECIAL, *MARKERS, "word"])}
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    known = {**letters, **{name: len(letters) + number for number, name in enumerate(SPECIAL)}}
    scored = [(name, 0.0) for name in [*SPECIAL, *MARKERS]] + [(chr(code), -5.0) for code in range(33, 127)]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spaces = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return {
        "ours": Tokenizer.train(TEXTS, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 400),
        "sentencepiece": published(byte_fallback=True),
        "sentencepiece with symbols": published(byte_fallback=True, user_defined_symbols=[*MARKERS, "<|im_start|>"]),
        "byte-level": json_tokenizer(models.BPE(letters, []), level, decoders.ByteLevel()),
        "byte-level of words": json_tokenizer(
            models.BPE(known, [], ignore_merges=True), pre_tokenizers.Sequence(spaces), decoders.ByteLevel()
        ),
        "unigram": json_tokenizer(models.Unigram([*scored, ("▁", -2.0)], 0), pre_tokenizers.Metaspace()),
        "words": json_tokenizer(models.WordLevel(words, "<unk>"), pre_tokenizers.WhitespaceSplit()),
    }


KINDS = [
    "ours",
    "sentencepiece",
    "sentencepiece with symbols",
    "byte-level",
    "byte-level of words",
    "unigram",
    "words",
]


def slots(turns, images=(), coder=CODER):
    conversations = {"from": [speaker for speaker, _ in turns], "value": [value for _, value in turns]}
    tokens = dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 2)
    return arrays_of(record_sample({"images": images, "conversations": conversations}, coder, tokens, 4))


def reason(turns, images=()) -> str:
    with pytest.raises(InvalidRecord) as caught:
        slots(turns, images)
    return caught.value.reason


def control_counts(tokens, coder) -> collections.Counter:
    names = ("begin", "end", "user", "assistant", "image_start", "image_end", "image_pad")
    ids = [getattr(coder, f"{name}_id") for name in names]
    assert len(set(ids)) == len(ids)
    return collections.Counter(token for token in tokens.tolist() if token in ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*MARKERS, *SPECIAL, "<begin>", "<end>"])
def test_no_text_becomes_a_marker(coders, kind, name):
    coder = coders[kind]
    plain = [("human", "<image> word"), ("gpt", "word")]
    wanted = control_counts(slots(plain, [picture(1)], coder).tokens, coder)
    assert wanted[coder.image_start_id] == wanted[coder.end_id] == 1
    for hostile in (name, f"word {name} word", f"word{name}{name}word", f"{name[0]}{name}{name[1:]}", f"a\0{name}"):
        made = slots([("human", f"<image> {hostile}"), ("gpt", f"{hostile} word")], [picture(1)], coder)
        assert control_counts(made.tokens, coder) == wanted
        split = name[:2] + "\0" + name[2:]
        made = slots([("human", f"<image> word {split}"), ("gpt", f"word {split}")], [picture(1)], coder)
        assert control_counts(made.tokens, coder) == wanted


def test_what_is_left_out_makes_no_placeholder():
    hidden = "<ima\0ge> <\u200bimage> <image\u202e>"
    made = slots([("human", f"<image>{hidden}"), ("gpt", "n1")], [picture(1)])
    assert (made.tokens == CODER.image_start_id).sum() == 1
    assert made.tokens.tolist().count(100 + len("<image>")) == 3, "it is text"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain", "plain"),
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc\vd\fe\x85f\u2028g\u2029h", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("a\0b\x07c\x1bd\x7fe\x80f\x9fg", "abcdefg"),
        ("\ufeffstart \u202eabc\u202c \u2066x\u2069 zero\u200bwidth", "start abc x zerowidth"),
        ("non\ufffe\uffff\ufdd0\U0001fffecharacters", "noncharacters"),
        (
            "👩\u200d🔬 نمی\u200cخواهم שלום\u200f 🏴\U000e0067\U000e007f",
            "👩\u200d🔬 نمی\u200cخواهم שלום\u200f 🏴\U000e0067\U000e007f",
        ),
        ("naïve 日本 \u00a0 e\u0301 ﬁ", "naïve 日本 \u00a0 e\u0301 ﬁ"),
        ("", ""),
    ],
)
def test_control_characters_go_and_what_is_read_stays(text, wanted):
    assert clean_text(text) == wanted
    assert clean_text(wanted) == wanted


def test_a_sample_has_the_cleaned_text():
    made = slots([("human", "n1\0\r\n\u202en2\u202c"), ("gpt", "\x1bn3")])
    assert [token for token in made.tokens.tolist() if token > 1000] == [1001, 1002, 1003]


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"ab\xc3", "half \ud800 pair"])
def test_text_that_is_not_unicode_is_invalid(bad):
    with pytest.raises(InvalidRecord, match="UTF-8") as caught:
        read_text(bad)
    assert caught.value.reason == "invalid"
    assert reason([("human", "n1"), ("gpt", bad)]) == "invalid"
    assert reason([(bad, "n1"), ("gpt", "n1")]) == "invalid"


class Counting(WordCoder):
    """Counts the characters that it is given."""

    seen = 0

    def encode(self, text):
        self.seen += len(text)
        return super().encode(text)


def test_an_enormous_text_is_left_out_before_it_costs_anything():
    coder = Counting()
    started = time.perf_counter()
    for turns in (
        [("human", "n1"), ("gpt", "a" * 1_000_000)],
        [("human", b"n1"), ("gpt", b"\xc3\xa9" * 500_000)],
        [("human", "a b " * 150), ("gpt", "n2")] * (MAX_CHARACTERS // 500),
        [("human", "")] * (MAX_CHARACTERS + 1),
    ):
        with pytest.raises(InvalidRecord, match="characters; expected at most") as caught:
            slots(turns, coder=coder)
        assert caught.value.reason == "too_long"
    assert coder.seen == 0
    assert time.perf_counter() - started < 5
    assert len(slots([("human", "n1"), ("gpt", "a " * (MAX_CHARACTERS // 2 - 2))]).tokens) > MAX_CHARACTERS // 2 - 10


@pytest.mark.parametrize("empty", ["", "  \n ", "\0\u200b"])
def test_a_record_without_an_answer_teaches_nothing(empty):
    assert reason([("human", "n1"), ("gpt", empty)]) == "nothing_learned"
    assert reason([("human", "<image>"), ("gpt", empty)], [picture(1)]) == "nothing_learned"
    assert reason([("human", "n1")]) == "nothing_learned"
    assert reason([]) == "nothing_learned"


def test_a_tower_learns_from_pictures_without_words():
    turns = {"from": ["human", "gpt"], "value": ["<image>", ""]}
    record = {"images": [picture(1)], "conversations": turns}
    made = record_sample(record, CODER, dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 0), 4)
    assert len(made.images) == 1


def test_an_empty_answer_among_others_is_not_learned():
    made = slots([("human", "n1"), ("gpt", ""), ("human", ""), ("gpt", "n2")])
    assert made.tokens[made.text_weight == 1].tolist() == [1002, CODER.end_id]
    assert made.tokens.tolist().count(CODER.end_id) == 2


def test_a_picture_alone_is_an_answer():
    made = slots([("human", ""), ("gpt", "<image>")], [picture(1)])
    assert made.visual_weight.sum() == 2
    assert made.tokens[-1] == CODER.end_id
    assert made.text_weight[-1] == 1
