"""Smart Watch as a TFDS dataset: its features and the ordinary, one-process TFDS builder.

`unihetero_jax.data.smart_watch.builder` writes the same records with many processes. Neither needs TensorFlow.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from unihetero_jax.data.records.draws import Draws
from unihetero_jax.data.records.example import serialize_fields
from unihetero_jax.data.smart_watch import QUESTION_STYLES, TASKS, record
from unihetero_jax.errors import UsageError, nearest

NAME = "smart_watch"
VERSION = "1.0.0"
SETS = ("train", "test")
# Attributes that may be held out of training: all except the time, with which every caption begins.
WITHHELD = ("weather", "battery", "weather_pos", "battery_pos")
_OR = f"{', '.join(WITHHELD[:-1])} or {WITHHELD[-1]}"
# Streams 0 to 3 of random numbers belong to the attributes and the tasks.
_TOLD_STREAM = 4
# The number of an image seeds its random numbers as one 32-bit word.
_MOST_IMAGES = 2**31
DESCRIPTION = (
    "Synthetic watch faces (arXiv 2505.23043). Each image gives three records: questions and answers (vqa), a caption, "
    "and a request that the image answers (generation)."
)


@dataclasses.dataclass(frozen=True)
class SmartWatchArguments:
    """Arguments that decide every record of a dataset.

    Attributes:
        num_images: Training images; each gives a record for every task.
        test_images: Test images, numbered after the training images.
        image_size: Side of an image in pixels.
        seed: Seed of everything random.
        questions: ``"paper"``, ``"all"`` or ``"exact"``, see `unihetero_jax.data.smart_watch.text`.
        withheld: Kinds of question, separated by commas, that are held out: they are neither asked about training
            images nor mentioned in their captions. ``weather``, ``battery``, ``weather_pos`` or ``battery_pos``.
            Requests for images and the test set mention them.
        told: Share of the training images that are supervised on them anyway.

    Raises:
        UsageError: A value is impossible.
    """

    num_images: int = 60_000
    test_images: int = 6_000
    image_size: int = 224
    seed: int = 0
    questions: str = "paper"
    withheld: str = ""
    told: float = 0.0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("num_images", 1, _MOST_IMAGES),
            ("test_images", 1, _MOST_IMAGES),
            ("image_size", 16, 4096),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"{name}={value} is impossible: expected {least} to {most}")
        if self.questions not in QUESTION_STYLES:
            raise UsageError(
                f"questions={self.questions!r} is unknown: expected one of {', '.join(QUESTION_STYLES)}"
                + nearest(self.questions, QUESTION_STYLES)
            )
        for kind in self._withheld:
            if kind not in WITHHELD:
                raise UsageError(
                    f"withheld={self.withheld!r}: {kind!r} cannot be withheld; expected {_OR}, or "
                    f"several separated by commas{nearest(kind, WITHHELD)}"
                )
        if not 0 <= self.told <= 1:
            raise UsageError(f"told={self.told} is impossible: expected a share from 0 to 1")
        if self.told and not self.withheld:
            raise UsageError(f"told={self.told} without withheld: expected withheld={_OR}")

    @property
    def _withheld(self) -> tuple[str, ...]:
        return tuple(kind for kind in self.withheld.split(",") if kind)

    def recorded(self) -> dict[str, Any]:
        """Return the arguments for the manifest: those of older versions alone, where nothing is held out."""
        values = dataclasses.asdict(self)
        return values if self.withheld else {key: values[key] for key in values if key not in ("withheld", "told")}

    def hidden(self, index: int) -> tuple[str, ...]:
        """Return the kinds that questions about an image and its caption leave out."""
        if not self.withheld or index >= self.num_images or Draws(self.seed, index, _TOLD_STREAM).chance(self.told):
            return ()
        return self._withheld

    def indices(self, part: str) -> range:
        """Return the numbers of the images of the ``"train"`` or the ``"test"`` set."""
        return range(self.num_images) if part == "train" else range(self.num_images, self.num_images + self.test_images)


@dataclasses.dataclass
class SmartWatchConfig(tfds.core.BuilderConfig):
    """A TFDS configuration: `SmartWatchArguments` under a name."""

    arguments: SmartWatchArguments = dataclasses.field(default_factory=SmartWatchArguments)


def split_name(part: str, task: str) -> str:
    """Return the split of a task's records in the train or the test set, such as ``train_vqa``."""
    return f"{part}_{task}"


def features(image_size: int) -> tfds.features.FeaturesDict:
    """Return the features of a record, in the form of `to_example`."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(image_size, image_size, 3), encoding_format="png"),
            "task": tfds.features.Text(),
            "conversations": tfds.features.Sequence({"from": tfds.features.Text(), "value": tfds.features.Text()}),
            "kinds": tfds.features.Sequence(tfds.features.Text()),
            "attributes": tfds.features.Text(),
            "index": tfds.features.Scalar(np.int64),
        }
    )


def to_example(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record in the form that TFDS encodes.

    TFDS encodes arrays with TensorFlow; a file object whose position is 0 is stored as it is.
    """
    return {**made, "image": io.BytesIO(made["image"])}


def serialize(made: Mapping[str, Any]) -> bytes:
    """Return the ``tf.train.Example`` that TFDS would store, always the same bytes for the same record."""
    turns = made["conversations"]
    texts = {
        "task": [made["task"]],
        "conversations/from": [turn["from"] for turn in turns],
        "conversations/value": [turn["value"] for turn in turns],
        "kinds": made["kinds"],
        "attributes": [made["attributes"]],
    }
    fields: dict[str, list[bytes] | list[int]] = {"image": [made["image"]], "index": [made["index"]]}
    return serialize_fields(fields | {name: [text.encode() for text in values] for name, values in texts.items()})


class SmartWatch(tfds.core.GeneratorBasedBuilder):
    """Smart Watch UI as an ordinary TFDS builder.

    ``SmartWatch(data_dir=..., config=SmartWatchConfig("mine", arguments=...), file_format="array_record")`` followed by
    ``download_and_prepare()`` writes it with one process and without TensorFlow.
    """

    # TFDS would look this up with importlib_resources, which it does not install.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS declares it as a plain attribute.
        SmartWatchConfig("paper", description="The mixture of questions of the paper."),
        SmartWatchConfig(
            "all",
            description="Every question about an image in one conversation.",
            arguments=SmartWatchArguments(questions="all"),
        ),
        SmartWatchConfig(
            "exact",
            description="Every question about an image in one conversation; requests give the shade of the disc.",
            arguments=SmartWatchArguments(questions="exact"),
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=DESCRIPTION,
            features=features(self.builder_config.arguments.image_size),
            homepage="https://arxiv.org/abs/2505.23043",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        del dl_manager  # Nothing is downloaded.
        return {split_name(part, task): self._generate_examples(part, task) for part in SETS for task in TASKS}

    def _generate_examples(self, part: str, task: str) -> Iterator[tuple[int, dict[str, Any]]]:
        arguments = self.builder_config.arguments
        for index in arguments.indices(part):
            hidden = arguments.hidden(index)
            made = record(arguments.seed, index, task, arguments.image_size, arguments.questions, hidden)
            yield index, to_example(made)
