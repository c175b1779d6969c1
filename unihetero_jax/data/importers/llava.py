"""Importer of LLaVA's format: JSON or JSONL of conversations about images that lie in folders.

A record is ``{"id": …, "image": path or [paths], "conversations": [{"from": "human" | "gpt", "value": text}, …],
"task": …}``; ``<image>`` in a human turn is an input, in a gpt turn it is to be generated (the format of the code
released with arXiv 2304.08485, and of its descendant with arXiv 2505.23043). ``id``, ``image`` and ``task`` may be
absent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from unihetero_jax.config.components import IMPORTERS
from unihetero_jax.data.ingest import json_stream
from unihetero_jax.data.ingest.importer import Importer, Refused, Rejected, attempt, escape, option
from unihetero_jax.data.ingest.inputs import (
    check_roots,
    check_utf8,
    file_sizes,
    find_image,
    read_image,
    roots_option,
    try_images,
)
from unihetero_jax.data.ingest.phrases import CAPTION, REPLIES, REQUESTS, choose, read_phrases
from unihetero_jax.data.records.record import IMAGE_TOKEN, TASKS, Record, Task, Turn, structure_task
from unihetero_jax.errors import UsageError, nearest

GENERATION = ("off", "instead", "both")

# LLaVA's and ShareGPT4V's own requests for a description match; questions about a detail or a region do not.
CAPTION_WORDS = (
    r"(?is)^(?!.*\b(region|bounding box|reasons?|inferred|why)\b).*\b(descri|caption|summar|depict|portray|narrat"
    r"|characteri[sz]e|account of|explanation of|interpretation of|rundown of|analysis of|in detail|detailed|details of"
    r"|its details|elements (of|in)|aspects of|contents? of|what do you see|what('s| is) happening"
    r"|what is (in )?(this|the) (photo|image|picture))"
)

# An <image> that is placed as an image's is: at the start or end of a turn, or on a line of its own; and any other.
_IMAGES = re.compile(r"(\A(?:\s*<image>)+|(?:<image>\s*)+\Z|^[ \t]*<image>[ \t]*$)|<image>", re.MULTILINE)
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@IMPORTERS.register("llava")
@dataclasses.dataclass(frozen=True)
class LlavaImporter(Importer):
    """LLaVA's JSON or JSONL, any number of files.

    The task of a record is the one it names, if its turns agree; a single exchange about one input image, answered in
    text, is a caption where the request matches ``caption_words``; any other task follows from the structure. As in
    LLaVA, a record with one image and no ``<image>`` has it at the start of the first human turn, and a gpt turn before
    the first human turn is left out unless it is an image. A ``system`` turn at the start becomes the beginning of the
    first human turn. An ``<image>`` that stands for none of the record's images is escaped.

    Attributes:
        files: The JSON or JSONL files.
        image_roots: Folders that the images' paths are relative to; the first that has an image is used. By default
            each file's own folder.
        generation: What becomes of a caption: ``"off"`` keeps it, ``"instead"`` reverses it into a request that the
            image answers, ``"both"`` does both, under one key.
        requests: Phrases of such a request, each with ``{caption}``; a record's key decides which it gets.
        caption_words: Regular expression; an empty one takes every such exchange for a caption.

    Raises:
        UsageError: An option is impossible.
    """

    name = "llava"
    summary = "conversations about images, in LLaVA's JSON"
    examples = """
  unihetero data import llava llava_v1_5_mix665k.json --image_root=images --out=data/llava
  unihetero data import llava blip_laion_cc_sbu_558k.json --image_root=pretrain --generation=both --out=data/pretrain"""

    files: Sequence[str] = option(metavar="FILE", help="JSON or JSONL in LLaVA's format", positional=True, many=True)
    image_roots: Sequence[str] = roots_option()
    generation: Literal["off", "instead", "both"] = option(
        "off",
        metavar="HOW",
        help="reverse captions into requests that the image answers; --generation=both keeps the captions too",
        without_value="instead",
    )
    requests: Sequence[str] = option(
        REQUESTS,
        metavar="FILE",
        help="phrases of such requests, one per line, each with {caption}",
        exists="file",
        parse=lambda file: read_phrases(file, CAPTION),
    )
    caption_words: str = option(
        CAPTION_WORDS, metavar="REGEX", help="distinguishes a request for a caption from a question"
    )

    def __post_init__(self) -> None:
        if not self.files:
            raise UsageError("no files: expected at least one JSON or JSONL file in LLaVA's format")
        if self.generation not in GENERATION:
            hint = nearest(self.generation, GENERATION)
            raise UsageError(f"generation={self.generation!r}: expected one of {', '.join(GENERATION)}{hint}")
        check_roots(self.image_roots)
        for phrase in self.requests:
            if phrase.count(CAPTION) != 1 or IMAGE_TOKEN in phrase:
                raise UsageError(f"the request {phrase!r}: expected {CAPTION} once and no {IMAGE_TOKEN}")
        try:
            re.compile(self.caption_words)
        except re.error as error:
            raise UsageError(f"caption_words={self.caption_words!r} is no regular expression: {error}") from error

    def provenance(self) -> Mapping[str, Any]:
        """Return JSON of the options, and the files with their sizes."""
        return {
            "files": file_sizes(self.files),
            "image_roots": list(self.image_roots),
            "generation": self.generation,
            "requests": list(self.requests) if self.generation != "off" else [],
            "caption_words": self.caption_words,
        }

    def units(self) -> Sequence[Mapping[str, Any]]:
        """Return stretches of the files, of about 64 MB when an image is counted as 100 kB.

        Raises:
            UsageError: A file cannot be read or has another format, or none of the first images exists.
        """
        units: list[dict[str, Any]] = []
        for number, path in enumerate(self.files):
            kind = json_stream.layout(path)
            parts = json_stream.stretches(json_stream.scan(path, kind), lambda found: b'"image"' in (found.data or b""))
            if not parts:
                raise UsageError(f"{path} has no records")
            units += [{"file": number, "layout": kind, **part} for part in parts]
        self._try_images(units[0])
        return units

    def records(self, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        """Yield the records of a stretch, in the order of the file."""
        number, path = unit["file"], self.files[unit["file"]]
        max_bytes = self.max_bytes(unit)
        for index, (line, fields) in enumerate(self._read(unit), start=unit["first"]):
            key = f"{number:02d}/{index:09d}"
            place = f"{Path(path).name}, line {line:,} (record {index + 1:,})"
            made = attempt(place, self._record, key, path, fields, max_bytes)
            yield from [made] if isinstance(made, Rejected) else self._with_requests(made)

    def _try_images(self, unit: Mapping[str, Any]) -> None:
        path = self.files[unit["file"]]

        def find(fields: Any) -> bool:
            images = _image_names(fields) if isinstance(fields, dict) else []
            return bool(images and self._find(path, images[0]))

        try_images(path, (fields for _, fields in self._read(unit)), find, "--image_root=DIR")

    def _read(self, unit: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
        where = (unit[name] for name in ("layout", "start", "stop", "line"))
        return json_stream.read(self.files[unit["file"]], *where)

    def _record(self, key: str, path: str, fields: Any, max_bytes: int) -> Record:
        if isinstance(fields, Refused):
            raise fields
        if not isinstance(fields, dict):
            raise Refused("invalid_record", f"expected a JSON object, got {type(fields).__name__}")
        names = _image_names(fields)
        system, turns = _turns(fields.get("conversations"), len(names))
        task = self._task(fields.get("task"), turns)
        identity = fields.get("id")
        attributes = json.dumps({"id": identity}) if isinstance(identity, str | int) else ""
        images: list[bytes] = []
        for name in names:
            images.append(read_image(self._find(path, name), max_bytes))
            max_bytes -= len(images[-1])
        return Record(key, tuple(images), _with_system(system, turns), task, attributes)

    def _task(self, named: Any, turns: Sequence[Turn]) -> Task:
        structure = structure_task(turns)
        describable = (
            [turn.speaker for turn in turns] == ["human", "gpt"]
            and structure == "vqa"
            and turns[0].text.count(IMAGE_TOKEN) == 1
        )
        if named in TASKS:
            agrees = describable if named == "caption" else structure == named
            if agrees or (named == "interleaved" and structure != "text"):
                return cast(Task, named)
        if describable and named != "vqa":
            asked = turns[0].text.replace(IMAGE_TOKEN, "").strip()
            if not asked or re.search(self.caption_words, asked):
                return "caption"
        return structure

    def _with_requests(self, record: Record) -> Iterator[Record]:
        """Yield a record as it is, or a caption reversed, or both."""
        if record.task != "caption" or self.generation != "instead":
            yield record
        if record.task == "caption" and self.generation != "off":
            caption = record.conversations[1].text.strip()
            request = choose(self.requests, record.key, "request").replace(CAPTION, caption)
            reply = f"{choose(REPLIES, record.key, 'reply')}\n{IMAGE_TOKEN}"
            turns = (Turn("human", request), Turn("gpt", reply))
            yield dataclasses.replace(record, conversations=turns, task="generation")

    def _find(self, path: str, name: str) -> Path:
        return find_image(self.image_roots or (os.fspath(Path(path).parent),), name)


def _image_names(fields: Mapping[str, Any]) -> list[str]:
    names = fields.get("image")
    if names is None or names == "":
        return []
    listed = names if isinstance(names, list) else [names]
    if not all(isinstance(name, str) for name in listed):
        raise Refused("invalid_image", f"image: expected a path or a list of paths, got {names!r}"[:200])
    return listed


def _turns(conversations: Any, images: int) -> tuple[str, tuple[Turn, ...]]:
    """Return the text of ``system`` and the turns of a record with the speakers ``human`` and ``gpt``.

    Raises:
        Refused: They are malformed, or have another number of ``<image>`` than there are images.
    """
    system, turns = _speakers(conversations)
    # As LLaVA does, leave out an answer whose question was cut off. In a document, an image may come first.
    cut_off = turns[:1] and turns[0].speaker == "gpt" and IMAGE_TOKEN not in turns[0].text
    if cut_off and any(turn.speaker == "human" for turn in turns):
        del turns[0]
    if not any(turn.speaker == "gpt" and turn.text.strip() for turn in turns):
        raise Refused("no_answer", "no gpt turn has text")
    if images == 1 and turns[0].speaker == "human" and not any(IMAGE_TOKEN in turn.text for turn in turns):
        turns[0] = Turn("human", f"{IMAGE_TOKEN}\n{turns[0].text}")
    return system, _placeholders(turns, images)


def _speakers(conversations: Any) -> tuple[str, list[Turn]]:
    if not isinstance(conversations, list) or not conversations:
        raise Refused("no_conversation", "conversations: expected a list of turns")
    system, turns = "", []
    for number, turn in enumerate(conversations, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise Refused("invalid_turn", f'turn {number}: expected {{"from": …, "value": text}}, got {turn!r}'[:200])
        speaker = turn.get("from")
        check_utf8(turn["value"])
        if speaker == "system" and number == 1:
            system = turn["value"].strip()
        elif isinstance(speaker, str) and speaker in _SPEAKERS:
            turns.append(Turn(_SPEAKERS[speaker], turn["value"]))
        else:
            raise Refused(
                "unknown_speaker",
                f"turn {number} is from {speaker!r}: expected {', '.join(_SPEAKERS)}, or system first",
            )
    return system, turns


def _placeholders(turns: Sequence[Turn], images: int) -> tuple[Turn, ...]:
    """Return the turns with every ``<image>`` escaped that stands for none of the images.

    Raises:
        Refused: It is unclear which do.
    """
    every = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
    if every == images:
        return tuple(turns)
    asked = [turn.text for turn in turns if turn.speaker == "human"]
    if sum(text.count(IMAGE_TOKEN) for text in asked) == images:
        return tuple(Turn(who, text if who == "human" else escape(text)) for who, text in turns)
    if sum((found[1] or "").count(IMAGE_TOKEN) for text in asked for found in _IMAGES.finditer(text)) == images:
        return tuple(
            Turn(who, _IMAGES.sub(lambda found: found[1] or escape(found[0]), text) if who == "human" else escape(text))
            for who, text in turns
        )
    raise Refused("image_count", f"{every} {IMAGE_TOKEN} for {images} images")


def _with_system(system: str, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns with the text of ``system`` before that of the first human turn, or as one."""
    if not system:
        return tuple(turns)
    first = next((number for number, turn in enumerate(turns) if turn.speaker == "human"), None)
    if first is None:
        return (Turn("human", escape(system)), *turns)
    return (*turns[:first], Turn("human", f"{escape(system)}\n{turns[first].text}"), *turns[first + 1 :])
