"""The bytes of a record in a shard: a ``tf.train.Example``, as TFDS writes and reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from unihetero_jax.data.records.record import Record

_SINGLE = frozenset({"image", "key", "task", "attributes", "index"})


def features() -> Any:
    """Return the features of a record, a ``tfds.features.FeaturesDict``."""
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
    """Return a record's bytes in a shard, the same for the same record in every process."""
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
    """Return the ``tf.train.Example`` of lists of bytes or of integers, always the same bytes for the same fields.

    TFDS's own encoder takes five times as long, most of it to check shapes that are known here, and its order of the
    fields, and so the bytes, changes from process to process.
    """
    features = {name: _feature(values) for name, values in fields.items()}
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def parse_features(data: bytes) -> Mapping[str, Any]:
    """Return the protobuf features of an example, by name.

    Raises:
        ValueError: The bytes are not a ``tf.train.Example``.
    """
    try:
        features: Mapping[str, Any] = tf_example_pb2.Example.FromString(data).features.feature
    except Exception as error:  # DecodeError of whichever protobuf implementation is installed
        raise ValueError(f"{len(data)} bytes that are no tf.train.Example: {error}") from error
    return features


def parse(data: bytes) -> dict[str, Any]:
    """Return the fields of a record from its bytes, as ``data.packing.sample.record_sample`` reads them.

    ``conversations`` is a dict of the lists ``from`` and ``value``; ``image``, ``key``, ``task``, ``attributes`` and
    ``index`` are one value each; any other field is the list of its values.

    Raises:
        ValueError: The bytes are not a ``tf.train.Example``.
    """
    fields: dict[str, Any] = {}
    stored = parse_features(data)
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
