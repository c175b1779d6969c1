"""Record: what a shard holds of every dataset, whatever it was imported from; and its bytes there.

A record is a ``tf.train.Example`` in an ArrayRecord file, as TFDS writes and reads it. Its fields:

  key                   one text       names the record within its dataset, such as ``00012/000120034``
  images                n bytes        encoded images (JPEG, PNG, WebP, …) in the order of their ``<image>``
  conversations/from    t texts        ``human`` or ``gpt``, a turn each
  conversations/value   t texts        what is said; each ``<image>`` stands for the next of the images
  task                  one text       one of ``TASKS``; every task has splits of its own, such as ``train_caption``
  attributes            one text       JSON, for evaluation; empty where nothing is known

Smart Watch's records have ``image`` instead of ``images``, and fields of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from unihetero_jax.data.packing.sample import IMAGE_TOKEN

Task = Literal["vqa", "caption", "generation", "text", "interleaved"]
# vqa: images are shown, text is learned. caption: one image shown, one text that describes it, so that the pair can be
# turned round. generation: an image answers. text: no image. interleaved: a document, all of it learned.
TASKS: tuple[Task, ...] = ("vqa", "caption", "generation", "text", "interleaved")
_SINGLE = frozenset({"image", "key", "task", "attributes", "index"})


class Turn(NamedTuple):
    """Who speaks (``human`` or ``gpt``), and what."""

    speaker: str
    text: str


@dataclass(frozen=True)
class Record:
    """A record before it is stored; the fields are those of the module's table."""

    key: str
    images: tuple[bytes, ...]
    conversations: tuple[Turn, ...]
    task: Task
    attributes: str = ""


def structure_task(conversations: Sequence[Turn]) -> Task:
    """The task that turns without further knowledge belong to: ``generation``, ``vqa`` or ``text``."""
    with_images = {turn.speaker for turn in conversations if IMAGE_TOKEN in turn.text}
    if "gpt" in with_images:
        return "generation"
    return "vqa" if with_images else "text"


def features() -> Any:
    """The features of a record, a ``tfds.features.FeaturesDict``."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
            "conversations": tfds.features.Sequence({"from": tfds.features.Text(), "value": tfds.features.Text()}),
            "task": tfds.features.Text(),
            "attributes": tfds.features.Text(),
        }
    )


def serialize(record: Record) -> bytes:
    """A record's bytes in a shard; the same for the same record, in every process."""
    return serialize_fields(
        {
            "key": [record.key.encode()],
            "images": list(record.images),
            "conversations/from": [turn.speaker.encode() for turn in record.conversations],
            "conversations/value": [turn.text.encode() for turn in record.conversations],
            "task": [record.task.encode()],
            "attributes": [record.attributes.encode()],
        }
    )


def serialize_fields(fields: Mapping[str, Sequence[bytes] | Sequence[int]]) -> bytes:
    """The ``tf.train.Example`` of lists of bytes or of integers, always the same bytes for the same fields.

    TFDS's own route takes five times as long, most of it in checking shapes that are known here, and its order of the
    fields, and so the bytes, changes from process to process.
    """
    made = {name: _feature(values) for name, values in fields.items()}
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=made))
    return example.SerializeToString(deterministic=True)


def parse(data: bytes) -> dict[str, Any]:
    """What ``data.packing.sample.record_sample`` reads, out of a record's bytes.

    ``conversations`` is a dict of the lists ``from`` and ``value``; ``image``, ``key``, ``task``, ``attributes`` and
    ``index`` are one value each; any other field is the list of its values.

    Raises:
      ValueError: the bytes are no ``tf.train.Example``.
    """
    try:
        example = tf_example_pb2.Example.FromString(data)
    except Exception as error:  # protobuf's own DecodeError, of whichever implementation is installed
        raise ValueError(f"{len(data)} bytes that are no tf.train.Example: {error}") from error
    fields: dict[str, Any] = {}
    stored = example.features.feature
    for name in stored:
        feature = stored[name]
        values = feature.bytes_list.value or feature.int64_list.value or feature.float_list.value
        if "/" in name:
            group, part = name.split("/", 1)
            fields.setdefault(group, {})[part] = list(values)
        else:
            fields[name] = values[0] if name in _SINGLE and len(values) == 1 else list(values)
    return fields


def _feature(values: Sequence[bytes] | Sequence[int]) -> tf_feature_pb2.Feature:
    if values and isinstance(values[0], int):
        return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=values))
    return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=values))
