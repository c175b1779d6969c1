import pickle

import pytest

from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import MARKERS, Tokenizer

TEXTS = [f"The time is {i % 13:02d}:{i * 7 % 60:02d}:{i % 60:02d}. The battery is at {i % 101}%." for i in range(400)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return path, Tokenizer.train(TEXTS, path, 512)


def test_same_texts_give_the_same_file(trained, tmp_path):
    path, _ = trained
    Tokenizer.train(iter(TEXTS), tmp_path / "another_name.model", 512)
    assert path.read_bytes() == (tmp_path / "another_name.model").read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.model"]


@pytest.mark.parametrize(
    "text",
    [*TEXTS[:20], "", " leading and  double  spaces ", "\nquestion\n", "日本 é 😀 \t \x00", "<image_pad></s><pad>"],
)
def test_round_trip_is_exact(trained, text):
    _, tokenizer = trained
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_text_cannot_place_a_marker(trained):
    _, tokenizer = trained
    reserved = {
        tokenizer.pad_id,
        tokenizer.unknown_id,
        tokenizer.begin_id,
        tokenizer.end_id,
        tokenizer.image_start_id,
        tokenizer.image_end_id,
        tokenizer.image_pad_id,
        tokenizer.user_id,
        tokenizer.assistant_id,
    }
    assert len(reserved) == 9
    assert tokenizer.pad_id == 0
    for marker in (*MARKERS, "<s>", "</s>", "<pad>", "<unk>", "".join(MARKERS)):
        assert not reserved & set(tokenizer.encode(f"say {marker} now"))
    # Nor does training on such texts teach it to.
    assert tokenizer.decode([*sorted(reserved - {tokenizer.unknown_id}), *tokenizer.encode("word")]) == "word"


def test_digits_are_single_pieces(trained):
    _, tokenizer = trained
    # 12 characters, of which only the dots between words may merge.
    assert [tokenizer.decode([i]) for i in tokenizer.encode("10:10")] == ["1", "0", ":", "1", "0"]


def test_ids_beyond_the_vocabulary_decode_as_unknown(trained):
    _, tokenizer = trained
    assert "word" in tokenizer.decode([tokenizer.vocabulary_size + 3, *tokenizer.encode("word")])


def test_vocabulary_is_bounded(trained, tmp_path):
    _, tokenizer = trained
    assert tokenizer.vocabulary_size <= 512
    with pytest.raises(UsageError, match="vocabulary_size=100 is too small"):
        Tokenizer.train(TEXTS, tmp_path / "small.model", 100)
    with pytest.raises(UsageError, match="empty"):
        Tokenizer.train([], tmp_path / "small.model", 512)
    assert not list(tmp_path.iterdir())


def test_load_and_pickle_keep_the_ids(trained):
    path, tokenizer = trained
    expected = tokenizer.encode(TEXTS[7])
    assert Tokenizer.load(path).encode(TEXTS[7]) == expected
    assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXTS[7]) == expected


def test_a_broken_file_is_one_clear_line(trained, tmp_path):
    path, _ = trained
    (tmp_path / "cut.model").write_bytes(path.read_bytes()[:1000])
    (tmp_path / "other.model").write_text("not a model")
    for name in ("missing.model", "cut.model", "other.model"):
        with pytest.raises(UsageError, match=name) as caught:
            Tokenizer.load(tmp_path / name)
        assert "\n" not in str(caught.value)
