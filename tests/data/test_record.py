"""Records: the bytes of a shard are what TFDS reads too, and come back as they were."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from unihetero_jax.data.records.example import features, parse, serialize
from unihetero_jax.data.records.record import Record, Turn, structure_task


def png(value: int, size: tuple[int, int] = (6, 5)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255)).save(file, "png")
    return file.getvalue()


def made(images: int = 2) -> Record:
    turns = (Turn("human", "<image>" * images + "what's this?"), Turn("gpt", "zwei Bilder: äß"))
    return Record("a/0001", tuple(png(40 * n) for n in range(images)), turns, "vqa", '{"n": 1}')


@pytest.mark.parametrize("images", [0, 1, 2])
def test_a_record_comes_back(images):
    record = made(images)
    fields = parse(serialize(record))
    assert fields["images"] == list(record.images)
    assert fields["key"] == b"a/0001"
    assert fields["task"] == b"vqa"
    assert fields["attributes"] == b'{"n": 1}'
    assert fields["conversations"]["from"] == [b"human", b"gpt"]
    texts = [value.decode() for value in fields["conversations"]["value"]]
    assert texts == [turn.text for turn in record.conversations]


def test_tfds_reads_the_same_bytes():
    record = made()
    example = features().deserialize_example_np(serialize(record))
    assert example["key"] == b"a/0001"
    assert [value.decode() for value in example["conversations"]["value"]] == [
        turn.text for turn in record.conversations
    ]
    assert [image.shape for image in example["images"]] == [(5, 6, 3)] * 2
    assert np.all(example["images"][1][..., 0] == 40)


def test_what_is_no_record_is_said():
    with pytest.raises(ValueError, match=r"3 bytes that are no tf\.train\.Example"):
        parse(b"\xff\xff\xff")


@pytest.mark.parametrize(
    ("turns", "task"),
    [
        ([Turn("human", "<image>a?"), Turn("gpt", "b")], "vqa"),
        ([Turn("human", "draw"), Turn("gpt", "here: <image>")], "generation"),
        ([Turn("human", "<image> again"), Turn("gpt", "<image>")], "generation"),
        ([Turn("human", "a"), Turn("gpt", "b")], "text"),
    ],
)
def test_the_task_of_a_structure(turns, task):
    assert structure_task(turns) == task
