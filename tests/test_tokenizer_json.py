"""A published ``tokenizer.json`` behind the interface of our own."""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.loading import load_tokenizer
from unihetero_jax.tokenizer.sentencepiece import MARKERS

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Byte-level BPE with special tokens, as Qwen's."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    made.train_from_iterator(["what time does the watch show", "the watch shows ten"], trainer)
    place = tmp_path_factory.mktemp("tokenizer")
    made.save(str(place / "tokenizer.json"))
    return place


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder / "tokenizer.model")


@pytest.mark.parametrize("text", ["the watch", "  two  spaces\n", "Zeit: 10:08 — été 时间 🕙", "<image_start>"])
def test_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", [*MARKERS, *SPECIAL, "<begin>"])
def test_no_text_becomes_a_special_token(tokenizer, folder, name):
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(f"a {name} b")
    special = {tokenizer.pad_id, tokenizer.begin_id, tokenizer.end_id, *(plain.token_to_id(other) for other in SPECIAL)}
    special |= {tokenizer.image_start_id, tokenizer.image_end_id, tokenizer.image_pad_id}
    special |= {tokenizer.user_id, tokenizer.assistant_id}
    assert not special.intersection(ids)
    assert tokenizer.decode(ids) == f"a {name} b"


def test_markers_have_ids_of_their_own_behind_the_vocabulary(tokenizer, folder):
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.image_start_id, tokenizer.image_end_id, tokenizer.image_pad_id]
    ids += [tokenizer.user_id, tokenizer.assistant_id]
    assert len(set(ids)) == 5
    assert min(ids) == plain.get_vocab_size()
    assert max(*ids, tokenizer.begin_id) == tokenizer.vocabulary_size - 1
    assert tokenizer.end_id == plain.token_to_id("<|im_end|>")
    assert tokenizer.pad_id == plain.token_to_id("<|endoftext|>")
    assert tokenizer.encode("the watch") == plain.encode("the watch").ids
    assert tokenizer.decode([*ids, *tokenizer.encode("ten"), tokenizer.end_id, 99_999]) == "ten"


def test_what_is_no_tokenizer_gets_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer\.json is no tokenizer\.json: ") as caught:
        load_tokenizer(tmp_path / "tokenizer.model")
    assert "\n" not in str(caught.value)


def changed(folder, tmp_path, change):
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return tmp_path / "tokenizer.json"


def test_ids_far_beyond_the_tokens_are_refused(folder, tmp_path):
    """A model has a row of weights for every id."""
    file = changed(folder, tmp_path, lambda content: content["model"]["vocab"].update(far=4_000_000_000))
    with pytest.raises(UsageError, match=r"is no tokenizer\.json: ids up to 4,000,000,000 for \d+ tokens"):
        load_tokenizer(file)
    near = changed(folder, tmp_path, lambda content: content["model"]["vocab"].update(near=9_000))
    assert load_tokenizer(near).vocabulary_size > 9_000


def test_a_regular_expression_that_takes_exponentially_long_is_refused(folder, tmp_path, capfd):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    file = changed(folder, tmp_path, lambda content: content.update(pre_tokenizer=split))
    with pytest.raises(UsageError, match="its regular expression takes too long on texts such as 'aaaaaaaaaaaa'"):
        load_tokenizer(file)
    assert capfd.readouterr().err == ""


def test_a_text_without_an_encoding_is_one_bad_record(folder, tmp_path):
    def words_alone(content):
        content.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}, added_tokens=[])

    tokenizer = load_tokenizer(changed(folder, tmp_path, words_alone))
    assert tokenizer.encode("a") == [0]
    with pytest.raises(ValueError, match="UNK"):  # which a stream counts as invalid
        tokenizer.encode("b")
