"""What ``unihetero data inspect --config`` says of a run, and draws of its rows."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from runs import TINY
from tiny_config import tiny_config

from unihetero_jax import cli
from unihetero_jax.data.inspect.rows import draw_rows, pieces
from unihetero_jax.data.packing.packed_batch import PackedBatch
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.pipeline import batches, open_mixture
from unihetero_jax.errors import UsageError
from unihetero_jax.run import mixture_report as inspect
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

TEXT_LEARNED, VISUAL_LEARNED = (0xEA, 0x58, 0x0C), (0x7C, 0x3A, 0xED)


def numbers_of(config, capsys):
    inspect.inspect_mixture(config, "tiny", None, as_json=True)
    return json.loads(capsys.readouterr().out)


def test_numbers_are_those_of_the_rows_that_training_reads(watch_data, capsys):
    config = tiny_config(**{"data.root": str(watch_data), "train.batch_size": 16, "train.steps": 30})
    found = numbers_of(config, capsys)
    tokenizer = Tokenizer.load(watch_data / "tokenizer.model")
    mixture = open_mixture(config, watch_data, "train", config.train.seed)
    stream = batches(config, mixture, tokenizer, list(range(16)), 16)
    made = [next(stream)[0] for _ in range(4)]
    stream.close()
    samples = sum(batch["segment"].max(axis=1).sum() for batch in made) / 64
    used = np.mean([(batch["segment"] > 0).mean() for batch in made])
    measured = found["measured"]
    assert measured["rows"] == 64
    assert measured["samples_per_row"] == pytest.approx(samples)
    assert measured["slots_used"] == pytest.approx(used)
    assert measured["visual_tokens_per_sample"] == 16
    assert measured["tokens_per_sample"] == pytest.approx(160 * used / samples)
    assert found["samples"] == pytest.approx(30 * 16 * samples)
    assert measured["skipped"] == {}
    entries = found["entries"]
    assert [(name, part["records"]) for name, part in entries.items()] == [
        ("vqa", 16),
        ("caption", 16),
        ("generation", 16),
    ]
    for part in entries.values():
        assert part["share"] == pytest.approx(1 / 3)
        assert part["epochs"] == pytest.approx(30 * 16 * samples / 3 / 16)


def test_a_mixture_of_sources_and_many_rows(watch_data, capsys):
    source = {"root": str(watch_data), "weight": 1.0}
    sources = {"a": {**source, "reverse": 0.5}, "b": {**source, "task_weights": {"vqa": 0.0}}}
    found = numbers_of(tiny_config(**{"data.sources": sources, "train.batch_size": 96}), capsys)
    shares = {name: part["share"] for name, part in found["entries"].items()}
    assert shares["a/caption"] == shares["a/caption/turned"] == pytest.approx(1 / 12)
    assert shares["b/caption"] == shares["b/generation"] == pytest.approx(1 / 4)
    assert "b/vqa" not in shares
    assert found["entries"]["a/caption/turned"]["asks_for_pictures"]
    assert found["measured"]["rows"] == 64
    assert found["measured"]["images_predicted_per_row"] < found["measured"]["images_per_row"]


def test_words_and_picture_from_the_command_line(watch_data, tmp_path, capsys):
    rows = tmp_path / "rows.png"
    command = ["data", "inspect", f"--config={TINY}", f"--config.data.root={watch_data}"]
    assert cli.main([*command, f"--rows={rows}", "--config.train.steps", "7"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^caption +16 +33\.3% +[\d.e+]+$", printed, re.MULTILINE)
    assert "7 steps of 8 rows of 192 slots" in printed
    assert re.search(r"slots used +\d\d\.\d%", printed)
    drawn = np.asarray(Image.open(rows).convert("RGB"))
    assert drawn.shape[1] == 1280
    for color in (TEXT_LEARNED, VISUAL_LEARNED):
        assert (drawn == color).all(axis=-1).sum() > 500
    # When nothing fits: an answer, not a wait.
    assert cli.main([*command, "--config.data.seq_len=20"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "too_long" in err


def packed(tokenizer: Tokenizer, words: str, picture: np.ndarray) -> PackedBatch:
    """A row of 40 slots: some words, the first of them read, and a picture of 4 slots."""
    tokens = tokenizer.encode(words)
    length = len(tokens)
    batch = {
        "tokens": np.zeros((1, 40), np.int32),
        "segment": np.zeros((1, 40), np.int32),
        "image": np.full((1, 40), -1, np.int32),
        "text_weight": np.zeros((1, 40), np.float32),
        "visual_weight": np.zeros((1, 40), np.float32),
        "images": picture[None, None],
        "role": np.full((1, 1), Role.TARGET, np.int8),
    }
    batch["tokens"][0, :length] = tokens
    batch["segment"][0, : length + 4] = 1
    batch["text_weight"][0, 1:length] = 1
    batch["image"][0, length : length + 4] = 0
    batch["visual_weight"][0, length : length + 4] = 1
    return batch


def test_the_strip_is_to_scale_and_the_picture_is_shown(watch_data):
    tokenizer = Tokenizer.load(watch_data / "tokenizer.model")
    picture = np.zeros((50, 50, 3), np.uint8)
    picture[..., 1] = np.arange(50)[:, None] * 5
    batch = packed(tokenizer, "xyzw", picture)
    assert len(tokenizer.encode("xyzw")) == 4
    sheet = np.asarray(draw_rows(batch, ["row 0"], tokenizer, "title"))
    # The strip's line of weights: slot 0 is read, 1 to 3 text, 4 to 7 the picture; 31 pixels a slot.
    line = sheet[66 + 34 + 12 + 3, 20:1260]
    assert [int((line == color).all(axis=-1).sum()) for color in (TEXT_LEARNED, VISUAL_LEARNED)] == [3 * 31, 4 * 31]
    assert (line[31 : 4 * 31] == TEXT_LEARNED).all()
    # The thumbnail has the picture's own pixels.
    greens = (sheet[..., 0] == 0) & (sheet[..., 2] == 0) & (sheet[..., 1] % 5 == 0)
    assert greens.sum() >= 50 * 50


def test_text_is_told_piece_by_piece(watch_data):
    tokenizer = Tokenizer.load(watch_data / "tokenizer.model")
    for words in ("What time is it?\n", "né 手表", "a\x07"):
        labels = pieces(tokenizer, tokenizer.encode(words))
        assert len(labels) == len(tokenizer.encode(words))
        told = "".join(label for label in labels if label != "…")
        assert told == words.replace(" ", "·").replace("\n", "·⏎·").replace("\x07", r"\x07")


def test_without_a_dataset_the_error_says_how_it_is_made(tmp_path):
    expected = (
        r"config\.data\.root .*: expected a dataset.*unihetero data build smart_watch --out={} --num_images=16 "
        r"--test_images=8 .*--image_size=32"
    )
    with pytest.raises(UsageError, match=expected.format("DIR") + r".*--config\.data\.root=DIR"):
        inspect.inspect_mixture(tiny_config(), "tiny", None, False)
    with pytest.raises(UsageError, match=expected.format(f"{tmp_path}/no")):
        inspect.inspect_mixture(tiny_config(**{"data.root": f"{tmp_path}/no"}), "tiny", None, False)
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        inspect.inspect_mixture(tiny_config(**{"data.root": str(tmp_path)}), "tiny", None, False)


def test_without_a_tokenizer_or_a_place_for_the_picture(watch_data, tmp_path, capsys):
    config = tiny_config(**{"data.root": str(watch_data), "data.tokenizer": f"{tmp_path}/none.model"})
    with pytest.raises(UsageError, match=r"config\.data\.tokenizer=.*none\.model: no such file"):
        inspect.inspect_mixture(config, "tiny", None, False)
    with pytest.raises(UsageError, match=r"cannot write .*missing/r\.png"):
        inspect.inspect_mixture(
            tiny_config(**{"data.root": str(watch_data)}), "tiny", tmp_path / "missing" / "r.png", False
        )
