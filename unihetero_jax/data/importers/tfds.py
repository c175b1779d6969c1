"""Importer of datasets that TFDS has prepared: an image with a text, or with a label whose name becomes words.

Records are read from the ArrayRecord files as they are: images stay encoded, and TensorFlow is not needed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from unihetero_jax.config.components import IMPORTERS
from unihetero_jax.data.ingest.captions import (
    LABEL,
    attribute_text,
    caption_record,
    check_label_text,
    check_prompts,
    label_option,
    prompts_option,
)
from unihetero_jax.data.ingest.importer import UNIT_BYTES, Importer, Refused, Rejected, attempt, names, option
from unihetero_jax.data.ingest.inputs import decode_text, file_size
from unihetero_jax.data.records.example import parse_features
from unihetero_jax.data.records.record import Record
from unihetero_jax.errors import UsageError, first_line, nearest

_INFO = "dataset_info.json"
_NAMED = "name:"
_RECORDS_READ = 64
# Texts that name a record or a file, and so do not describe the image.
_NO_CAPTIONS = frozenset({"id", "key", "name", "url", "filename", "file_name", "path", "hash", "md5", "license"})


class _Chosen(NamedTuple):
    """Features that make a record.

    Attributes:
        image: Path of the image.
        said: Path of the text or label.
        labels: Names of a label's numbers; None for a text.
    """

    image: str
    said: str
    labels: tuple[str, ...] | None


@IMPORTERS.register("tfds")
@dataclasses.dataclass(frozen=True)
class TfdsImporter(Importer):
    """A prepared TFDS dataset whose files are ArrayRecord. Every record is a caption.

    Attributes:
        dataset: Its directory (the one with ``dataset_info.json``), or ``name:NAME`` or ``name:NAME/CONFIG:VERSION``,
            which TFDS finds among the datasets prepared on this machine.
        splits: Splits that become training records, as TFDS writes them: ``train``, ``train[:10%]``,
            ``train+validation``.
        test_splits: Splits that become test records.
        image_feature: Path of the image feature; needed where there are several. Parts are separated by ``/``.
        text_feature: Path of the text feature. A sequence of texts gives a record each.
        label_feature: Path of the label feature.
        label_text: Caption for a label; ``{label}`` stands for its name, in which underscores become spaces.
        prompts: Phrases that ask for the caption; a record's key decides which it gets.

    Raises:
        UsageError: An option is impossible.
    """

    name = "tfds"
    summary = "a dataset that TFDS has prepared: images with texts or labels"
    examples = """
  unihetero data import tfds ~/tensorflow_datasets/imagenet2012/5.1.0 --test_split=validation --out=data/imagenet
  unihetero data import tfds name:coco_captions --split=train+restval --text_feature=captions/text --out=data/coco

The dataset's files have to be ArrayRecord; TensorFlow is not needed."""

    dataset: str = option(
        metavar="DATASET",
        help="the directory with dataset_info.json, or name:NAME/CONFIG:VERSION for one in TFDS's own directory",
        positional=True,
    )
    splits: Sequence[str] = option(
        ("train",),
        metavar="SPLIT",
        help="training split, as TFDS writes it, such as 'train[:10%%]' (default: train)",
        flag="split",
        parse=names,
    )
    test_splits: Sequence[str] = option((), metavar="SPLIT", help="test split", flag="test_split", parse=names)
    image_feature: str = option(
        "", metavar="NAME", help="the image; parts of a path are separated by / (default: the only one)"
    )
    text_feature: str = option(
        "", metavar="NAME", help="text about the image; each text of a sequence gives a record (default: the only one)"
    )
    label_feature: str = option("", metavar="NAME", help="a label instead of a text (default: the only one)")
    label_text: str = label_option()
    prompts: Sequence[str] = prompts_option()

    def __post_init__(self) -> None:
        if self.text_feature and self.label_feature:
            raise UsageError("text_feature and label_feature: expected one of them")
        check_label_text(self.label_text)
        if not (self.splits or self.test_splits):
            raise UsageError("splits: expected at least one")
        check_prompts(self.prompts)

    def provenance(self) -> Mapping[str, Any]:
        """Return JSON of the options, and version and size of each split that is read."""
        builder = self._open()
        sizes = {
            split: sum(_size(stretch) for stretch in _stretches(builder, split))
            for split in (*self.splits, *self.test_splits)
        }
        return {**dataclasses.asdict(self), "full_name": builder.info.full_name, "bytes": sizes}

    def units(self) -> Sequence[Mapping[str, Any]]:
        """Return stretches of the shards, of about 64 MB.

        Raises:
            UsageError: There is no such dataset, split or feature, or its files have another format.
        """
        builder = self._open()
        self._choose(builder)
        units = []
        for part, splits in (("train", self.splits), ("test", self.test_splits)):
            for split in splits:
                first = 0
                for stretch in _stretches(builder, split):
                    examples, end = stretch.examples_in_shard, stretch.skip + stretch.take
                    shard = os.path.basename(stretch.filename)
                    step = max(1, int(UNIT_BYTES / max(_size(stretch) / max(examples, 1), 1)))
                    for start in range(stretch.skip, end, step):
                        stop = min(start + step, end)
                        unit = {"part": part, "split": split, "shard": shard, "examples": examples}
                        units.append({**unit, "first": first, "start": start, "stop": stop})
                        first += stop - start
                if not first:
                    raise UsageError(f"{self.dataset}: the split {split!r} has no records")
        return units

    def records(self, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        """Yield the records of a stretch, in the order of the shard.

        Raises:
            UsageError: The shard cannot be read, or has another number of records than the dataset's description says.
        """
        builder = self._open()
        chosen = self._choose(builder)
        path = Path(builder.data_path) / unit["shard"]
        stored = _stored(path, unit["start"], unit["stop"], unit["examples"])
        for number, data in enumerate(stored, start=unit["first"]):
            yield from self._captions(f"{unit['split']}/{number:09d}", data, chosen, unit)

    def _captions(self, key: str, data: bytes, chosen: _Chosen, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        try:
            if len(data) > self.max_bytes(unit):
                raise Refused("record_too_large", f"{len(data):,} bytes: expected at most --max_record_mb")
            images, said = _values(data, chosen.image, chosen.said)
            if len(images) != 1 or not isinstance(images[0], bytes) or not images[0]:
                raise Refused("missing_image", f"{chosen.image} holds no image")
            texts, attributes = self._texts(said, chosen)
        except Refused as refused:
            yield refused.of(key)
            return
        for number, text in enumerate(texts):
            own = f"{key}/{number}" if len(texts) > 1 else key
            yield attempt(own, caption_record, own, images[0], text, self.prompts, attributes)

    def _texts(self, said: Sequence[Any], chosen: _Chosen) -> tuple[Sequence[str], str]:
        """Return the captions of an image, each for a record of its own, and its attributes."""
        if not said:
            raise Refused("empty_text", f"{chosen.said} is empty")
        if chosen.labels is None:
            return [decode_text(text) for text in said], ""
        unknown = [number for number in said if not 0 <= number < len(chosen.labels)]
        if unknown:  # TFDS writes −1 where a label is hidden
            raise Refused("no_label", f"{chosen.said} is {unknown[0]}")
        names = [chosen.labels[number] for number in said]
        words = ", ".join(names).replace("_", " ")
        return [self.label_text.replace(LABEL, words)], attribute_text({"labels": names})

    def _open(self) -> Any:
        """Return the TFDS builder of the dataset, after checking that its files are ArrayRecord."""
        if self.dataset.startswith(_NAMED):
            name = self.dataset.removeprefix(_NAMED)
            try:
                builder = tfds.core.read_only_builder.builder_from_files(name)
            except Exception as error:  # of any type, as below
                raise UsageError(f"tfds has no prepared dataset {name!r}: {first_line(error)}") from error
        else:
            if not (Path(self.dataset) / _INFO).is_file():
                found = sorted(Path(self.dataset).glob(f"*/{_INFO}")) + sorted(Path(self.dataset).glob(f"*/*/{_INFO}"))
                hint = f"; did you mean {found[0].parent}?" if found else ""
                raise UsageError(f"{self.dataset} has no {_INFO}: expected the directory of a prepared dataset{hint}")
            try:
                builder = tfds.builder_from_directory(self.dataset)
            except Exception as error:  # TFDS and protobuf raise many on damaged descriptions
                raise UsageError(f"{self.dataset} cannot be opened by tfds: {first_line(error)}") from error
        kind = builder.info.file_format
        if kind is not tfds.core.FileFormat.ARRAY_RECORD:
            raise UsageError(
                f"{builder.data_path} is stored as {kind.value}: expected array_record; make it again with `tfds build "
                f"{builder.name} --file_format=array_record`, or copy it with `tfds convert_format --out_dir=DIR "
                f"--dataset_version_dir={builder.data_path} --out_file_format=array_record`"
            )
        return builder

    def _choose(self, builder: Any) -> _Chosen:
        """Return the features to read: those named, or the only ones there are."""
        # Sorted, because TFDS returns them in another order each time.
        leaves = dict(sorted(_leaves(builder.info.features, "")))
        images = [path for path, (leaf, many) in leaves.items() if _is_image(leaf) and not many]
        labels = [path for path, (leaf, _) in leaves.items() if isinstance(leaf, tfds.features.ClassLabel)]
        texts = [path for path, (leaf, _) in leaves.items() if isinstance(leaf, tfds.features.Text)]
        image = self._named("image_feature", self.image_feature, images, images)
        descriptive = [path for path in texts if path.rpartition("/")[2].lower() not in _NO_CAPTIONS]
        if self.text_feature:
            return _Chosen(image, self._named("text_feature", self.text_feature, texts, descriptive), None)
        if not self.label_feature and descriptive:
            if labels or len(descriptive) > 1:
                raise UsageError(
                    f"{self.dataset} has the texts {', '.join(descriptive)} and the labels "
                    f"{', '.join(labels) or 'none'}: expected one of them as --text_feature or --label_feature"
                )
            return _Chosen(image, descriptive[0], None)
        label = self._named("label_feature", self.label_feature, labels, labels)
        return _Chosen(image, label, tuple(leaves[label][0].names))

    def _named(self, option: str, value: str, there: Sequence[str], usual: Sequence[str]) -> str:
        if value:
            if value not in there:
                listed = ", ".join(there) or "none"
                raise UsageError(
                    f"{self.dataset}: no {option} {value!r}: expected one of {listed}{nearest(value, there)}"
                )
            return value
        if len(usual) != 1:
            listed = ", ".join(usual) or "none"
            raise UsageError(f"{self.dataset}: expected --{option}=NAME, as there is not exactly one: {listed}")
        return usual[0]


def _leaves(feature: Any, path: str, many: bool = False) -> Iterator[tuple[str, tuple[Any, bool]]]:
    """Yield every stored feature by its path, and whether a record may have several of it."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, inner in feature.items():
            yield from _leaves(inner, f"{path}/{name}" if path else name, many)
    elif isinstance(feature, tfds.features.Sequence):
        yield from _leaves(feature.feature, path, True)
    else:
        yield path, (feature, many)


def _is_image(leaf: Any) -> bool:
    # A labeled image is a map of classes; one of floats is not stored as an encoded image.
    special = isinstance(leaf, tfds.features.LabeledImage)
    return isinstance(leaf, tfds.features.Image) and not special and leaf.np_dtype.kind == "u"


def _values(data: bytes, *paths: str) -> list[list[Any]]:
    """Return the values of some features of an Example, without touching the rest.

    Raises:
        Refused: The bytes are not an Example.
    """
    try:
        features = parse_features(data)
    except ValueError as error:
        raise Refused("invalid_record", str(error)) from error
    found: list[list[Any]] = []
    for path in paths:
        kind = features[path].WhichOneof("kind") if path in features else None
        found.append(list(getattr(features[path], kind).value) if kind else [])
    return found


def _stretches(builder: Any, split: str) -> Sequence[Any]:
    """Return the stretches of shards that a split consists of, in order."""
    try:
        return builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        there = ", ".join(sorted(builder.info.splits))
        raise UsageError(f"{builder.data_path}: no split {split!r}: it has {there}") from error


def _size(stretch: Any) -> int:
    return file_size(stretch.filename, ", which the dataset's description lists")


def _stored(path: Path, start: int, stop: int, expected: int) -> Iterator[bytes]:
    try:
        reader = array_record_module.ArrayRecordReader(os.fspath(path))
        if reader.ok() and reader.num_records() != expected:
            raise UsageError(f"{path} has {reader.num_records()} records, the dataset's description says {expected}")
        for first in range(start, stop, _RECORDS_READ) if reader.ok() else ():
            yield from reader.read(first, min(first + _RECORDS_READ, stop))
        reader.close()  # raises what was wrong with a reader that is not ok
    except (ValueError, RuntimeError, IndexError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error
