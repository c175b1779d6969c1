"""What a conversation becomes, slot by slot."""

from __future__ import annotations

import numpy as np
import pytest
from coder import WordCoder, arrays_of, picture

from unihetero_jax.data.packing.sample import conversation_segments, lay_out, record_sample
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.invalid import InvalidRecord

CODER = WordCoder()
TWO_EACH = dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 2)
BEGIN, END, USER, ASSISTANT, START, STOP, PAD = 1, 2, 3, 4, 5, 6, 7


def slots(turns, images, tokens=TWO_EACH, size=4):
    conversations = [{"from": speaker, "value": value} for speaker, value in turns]
    return arrays_of(record_sample({"images": images, "conversations": conversations}, CODER, tokens, size))


def columns(made):
    """One (token, image, patch, text weight, visual weight) a slot."""
    arrays = (made.tokens, made.image, made.patch, made.text_weight, made.visual_weight)
    return list(zip(*(array.tolist() for array in arrays), strict=True))


def test_question_about_an_image():
    made = slots([("human", "<image>\nwhat n1"), ("gpt", "ten n2")], [picture(9)])
    assert columns(made) == [
        (BEGIN, -1, -1, 0, 0),
        (USER, -1, -1, 0, 0),
        (START, -1, -1, 0, 0),
        (PAD, 0, 0, 0, 0),
        (PAD, 0, 1, 0, 0),
        (STOP, -1, -1, 0, 0),
        (104, -1, -1, 0, 0),
        (1001, -1, -1, 0, 0),
        (ASSISTANT, -1, -1, 0, 0),
        (103, -1, -1, 1, 0),
        (1002, -1, -1, 1, 0),
        (END, -1, -1, 1, 0),
    ]
    assert made.roles == (Role.INPUT,)
    np.testing.assert_array_equal(made.images[0], np.full((4, 4, 3), 9, np.uint8))


def test_request_for_an_image():
    made = slots([("human", "draw n1"), ("gpt", "<image>")], [picture(9)])
    assert columns(made) == [
        (BEGIN, -1, -1, 0, 0),
        (USER, -1, -1, 0, 0),
        (104, -1, -1, 0, 0),
        (1001, -1, -1, 0, 0),
        (ASSISTANT, -1, -1, 0, 0),
        (START, -1, -1, 1, 0),
        (PAD, 0, 0, 0, 1),
        (PAD, 0, 1, 0, 1),
        (STOP, -1, -1, 1, 0),
        (END, -1, -1, 1, 0),
    ]
    assert made.roles == (Role.TARGET,)


def test_images_anywhere_and_any_number_of_turns():
    turns = [("human", "n1 <image> n2 <image>"), ("gpt", "n3 <image> n4"), ("human", "n5"), ("gpt", "n6")]
    made = slots(turns, [picture(1), picture(2), picture(3)])
    expected = [BEGIN, USER, 1001, START, PAD, PAD, STOP, 1002, START, PAD, PAD, STOP]
    expected += [ASSISTANT, 1003, START, PAD, PAD, STOP, 1004, END, USER, 1005, ASSISTANT, 1006, END]
    assert made.tokens.tolist() == expected
    assert made.roles == (Role.INPUT, Role.INPUT, Role.TARGET)
    assert [int(image[0, 0, 0]) for image in made.images] == [1, 2, 3]
    assert made.image[made.image >= 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert made.patch[made.image >= 0].tolist() == [0, 1] * 3
    learned = [1003, START, STOP, 1004, END, 1006, END]
    assert made.tokens[made.text_weight == 1].tolist() == learned
    assert set(made.text_weight.tolist()) == {0.0, 1.0}
    assert made.visual_weight[made.image >= 0].tolist() == [0, 0, 0, 0, 1, 1]


def test_a_role_may_have_its_own_number_of_tokens():
    made = slots([("human", "<image>"), ("gpt", "<image>")], [picture(1), picture(2)], {Role.INPUT: 1, Role.TARGET: 3})
    assert made.patch[made.image >= 0].tolist() == [0, 0, 1, 2]


def test_an_image_may_be_read_and_predicted_at_once():
    turns = [("human", "<image>"), ("gpt", "n1")]
    segments = conversation_segments(turns, [picture(1)], CODER, input_role=Role.BOTH)
    made = arrays_of(lay_out(segments, CODER, TWO_EACH).decode(4))
    assert made.roles == (Role.BOTH,)
    assert made.visual_weight[made.image >= 0].tolist() == [1, 1]
    assert made.text_weight.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1], "its markers are read, not learned"


def test_images_are_brought_to_one_size_and_three_channels():
    made = slots([("human", "<image>"), ("gpt", "n1")], [picture(7, side=9)], size=4)
    assert made.images[0].shape == (4, 4, 3)
    assert made.images[0].dtype == np.uint8


def test_types():
    made = slots([("human", "n1"), ("gpt", "n2")], [])
    assert [made.tokens.dtype, made.image.dtype, made.patch.dtype] == [np.int32] * 3
    assert [made.text_weight.dtype, made.visual_weight.dtype] == [np.float32] * 2
    assert len(made.tokens) == 6


def test_what_tfds_returns_is_taken():
    turns = {"from": np.asarray([b"human", b"gpt"], object), "value": np.asarray([b"<image> n1", b"n2"], object)}
    made = record_sample({"image": picture(5), "conversations": turns}, CODER, TWO_EACH, 4)
    assert made.tokens.tolist() == [BEGIN, USER, START, PAD, PAD, STOP, 1001, ASSISTANT, 1002, END]


@pytest.mark.parametrize(
    ("turns", "images", "reason", "words"),
    [
        ([("human", "<image>"), ("gpt", "n1")], [], "invalid", "more <image> than the record's 0 images"),
        ([("human", "n1"), ("gpt", "n1")], [picture(1)], "invalid", "0 <image> for the record's 1 images"),
        ([("system", "n1")], [], "invalid", "'system'"),
        ([("human", "<image>"), ("gpt", "n1")], [picture(1)[:40]], "undecodable", "cannot be decoded"),
        ([("human", "<image>"), ("gpt", "n1")], [picture(1)[:-30]], "undecodable", "cannot be decoded"),
        ([("human", "<image>"), ("gpt", "n1")], [b""], "undecodable", "0 bytes"),
    ],
)
def test_bad_records_say_why(turns, images, reason, words):
    with pytest.raises(InvalidRecord, match=words) as caught:
        slots(turns, images)
    assert caught.value.reason == reason


def test_text_that_is_not_utf8_is_a_bad_record():
    turns = {"from": [b"human"], "value": [b"\xff\xfe"]}
    with pytest.raises(InvalidRecord, match="UTF-8"):
        record_sample({"images": [], "conversations": turns}, CODER, TWO_EACH, 4)


def test_an_empty_sample_has_no_slots():
    assert len(lay_out([], CODER, TWO_EACH).decode(4)) == 0
