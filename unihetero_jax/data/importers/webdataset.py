"""Importer of WebDataset tars: members that follow each other and share a key are a sample.

The key of a member is its path up to the first dot of its base name; what follows is its kind: ``jpg``, ``jpeg``,
``png`` or ``webp`` beside ``txt`` (the caption), ``json`` (an object with a caption, as img2dataset writes it, or a
list: a document of texts and images in reading order), perhaps ``cls`` (the number of a class). Nothing is extracted:
the names are words, never paths.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from unihetero_jax.data.ingest.captions import Refused, attribute_text, caption_record, check_prompts
from unihetero_jax.data.ingest.importer import Rejected, escape
from unihetero_jax.data.ingest.phrases import DESCRIBE
from unihetero_jax.data.ingest.tar import BrokenTar, Member, is_compressed, members, open_tar, read_member
from unihetero_jax.data.records.record import IMAGE_TOKEN, Record, Turn
from unihetero_jax.errors import UsageError

IMAGE_KINDS = frozenset(("jpg", "jpeg", "png", "webp"))
_READ_KINDS = IMAGE_KINDS | {"txt", "json", "cls"}
_UNIT_BYTES = 64_000_000
# Looking for the members of every tar before the work begins would take long; those of usual size are one unit each.
_WHOLE_TAR_BYTES = 4 * _UNIT_BYTES
# An Example must stay below protobuf's 2 GB.
_MOST_MEMBER_BYTES, _MOST_SAMPLE_BYTES = 1 << 28, 1 << 30
_MOST_TARS = 1_000_000


@dataclasses.dataclass(frozen=True)
class WebDatasetImporter:
    """Tars of images and texts.

    Attributes:
        tars: Paths or patterns: ``{00000..00012}`` and ``{a,b}`` are expanded, and so are ``*`` and ``?``.
        caption_key: Of the JSON object, where there is no ``txt``.
        attributes: Keys of the JSON object to keep with the record, beside ``cls``.
        class_names: Names of the classes from 0 on; one is the caption of a sample that has no other.
        prompts: Phrasings that ask for a caption; a record's key decides which it gets.

    Raises:
        UsageError: An option is impossible.
    """

    tars: Sequence[str]
    caption_key: str = "caption"
    attributes: Sequence[str] = ()
    class_names: Sequence[str] = ()
    prompts: Sequence[str] = DESCRIBE

    name: ClassVar[str] = "webdataset"

    def __post_init__(self) -> None:
        if not self.tars:
            raise UsageError("no tars: expected at least one path or pattern, such as 'data/{00000..00012}.tar'")
        check_prompts(self.prompts)

    def provenance(self) -> Mapping[str, Any]:
        """JSON of the options, and the tars with their sizes."""
        sizes = [{"path": path, "bytes": _size(path)} for path in self._paths()]
        return {**dataclasses.asdict(self), "tars": sizes}

    def units(self) -> Sequence[Mapping[str, Any]]:
        """The tars, the larger ones in parts.

        Raises:
            UsageError: There is no such tar, or the first is no tar from its first byte on.
        """
        units: list[dict[str, Any]] = []
        for path in self._paths():
            if not units:
                _check_tar(path)
            # What is compressed can only be read from its start.
            if _size(path) <= _WHOLE_TAR_BYTES or is_compressed(path):
                units.append({"tar": path})
            else:
                with _open(path) as file:
                    units += [{"tar": path, **part} for part in _parts(file)]
        return units

    def records(self, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        """The records of a tar or a part of one, in the order of their first members."""
        stem = Path(unit["tar"]).name.split(".", 1)[0]
        with _open(unit["tar"]) as file:
            sample = _Sample("")
            try:
                for member in members(file, unit.get("start", 0), unit.get("stop")):
                    key, kind = _key(member.name)
                    if not kind:
                        continue
                    if key != sample.key:
                        yield from self._made(stem, sample)
                        sample = _Sample(key)
                    sample.add(file, member, kind)
            except BrokenTar as error:
                # What was being read may lack members that cannot be read any more.
                yield Rejected(f"{stem}/{sample.key}", "broken_tar", str(error))
                return
            yield from self._made(stem, sample)

    def _paths(self) -> list[str]:
        """Paths of the tars, each once.

        Raises:
            UsageError: A pattern has no match.
        """
        paths: dict[str, None] = {}
        for pattern in self.tars:
            for expanded in expand_braces(pattern):
                found = sorted(glob.glob(expanded, recursive=True)) if glob.has_magic(expanded) else [expanded]
                if not found:
                    raise UsageError(f"{expanded}: no such file")
                paths |= dict.fromkeys(found)
        return list(paths)

    def _made(self, stem: str, sample: _Sample) -> Iterator[Record | Rejected]:
        if not sample.members:
            return
        key = f"{stem}/{sample.key}"
        try:
            yield self._record(key, sample)
        except Refused as refused:
            yield refused.of(key)

    def _record(self, key: str, sample: _Sample) -> Record:
        if sample.refused is not None:
            raise sample.refused
        told = _json(sample.content.get("json"))
        if isinstance(told, list):
            return _document(key, told, sample)
        images = [sample.content[kind] for kind in sorted(IMAGE_KINDS & set(sample.content))]
        if len(images) != 1:
            reason = "several_images" if images else "missing_image"
            raise Refused(reason, f"{len(images)} images beside {', '.join(sorted(sample.content)) or 'nothing'}")
        known: dict[str, Any] = {name: told[name] for name in self.attributes if name in told}
        if "cls" in sample.content:
            known["cls"] = _class(sample.content["cls"])
        caption = self._caption(sample, told, known.get("cls"))
        return caption_record(key, images[0], caption, self.prompts, attribute_text(known))

    def _caption(self, sample: _Sample, told: Mapping[str, Any], number: int | None) -> str:
        if "txt" in sample.content:
            return _text(sample.content["txt"])
        caption = told.get(self.caption_key)
        if isinstance(caption, str):
            return caption
        if number is not None and number < len(self.class_names):
            return self.class_names[number]
        raise Refused("missing_text", f"no txt, and no {self.caption_key!r} in a json")


class _Sample:
    """The members of one key: what of them is read, and why they cannot be a record."""

    def __init__(self, key: str):
        self.key = key
        self.members: dict[str, Member] = {}
        self.content: dict[str, bytes] = {}
        self.refused: Refused | None = None
        self._bytes = 0

    def add(self, file: IO[bytes], member: Member, kind: str) -> None:
        """Reads a member, if it is of a kind that is read and nothing is wrong with the sample yet.

        Raises:
            BrokenTar: It is cut off.
        """
        if kind in self.members:
            self.refused = self.refused or Refused("repeated_member", f"{member.name!r} is there twice")
        self.members[kind] = member
        if self.refused is not None or (kind not in _READ_KINDS and kind.rpartition(".")[2] not in IMAGE_KINDS):
            return
        self._bytes += member.size
        if member.size > _MOST_MEMBER_BYTES or self._bytes > _MOST_SAMPLE_BYTES:
            self.refused = Refused("member_too_large", f"{member.name!r} has {member.size:,} bytes")
            self.content = {}
            return
        self.content[kind] = read_member(file, member)

    def image(self, name: str, words: bool = False) -> bytes | None:
        """The image of that name: the whole, the base name, or what follows the key.

        ``words``: the name may be what someone wrote, who may well write ``png``.
        """
        for kind, member in self.members.items():
            if kind in self.content and kind.rpartition(".")[2] in IMAGE_KINDS:
                own = {member.name, member.name.removeprefix("./"), member.name.rpartition("/")[2]}
                if name in own or (name.lower() == kind and not (words and kind in IMAGE_KINDS)):
                    return self.content[kind]
        return None


def _document(key: str, told: Sequence[Any], sample: _Sample) -> Record:
    """A list of texts and names of images, in reading order, as one turn that is learned.

    Raises:
        Refused: It is malformed or empty, or one of its images is not there.
    """
    parts: list[str] = []
    images: list[bytes] = []
    for part in told:
        if isinstance(part, str) and sample.image(part, words=True) is None:
            parts.append(escape(part))
            continue
        name = part.get("image") if isinstance(part, dict) else part
        if isinstance(part, dict) and isinstance(part.get("text"), str) and name is None:
            parts.append(escape(part["text"]))
            continue
        if not isinstance(name, str):
            raise Refused("invalid_document", f'expected text or {{"image": name}}, got {part!r}'[:200])
        image = sample.image(name, words=isinstance(part, str))
        if image is None:
            raise Refused("missing_image", f"the document shows {name!r}, which is not among its members")
        parts.append(IMAGE_TOKEN)
        images.append(image)
    text = "\n".join(part for part in parts if part.strip())
    if not text:
        raise Refused("empty_text", "a document of nothing")
    return Record(key, tuple(images), (Turn("gpt", text),), "interleaved")


def _check_tar(path: str) -> None:
    """Refuses what is no tar at once, rather than every file after an hour."""
    with _open(path) as file:
        try:
            next(members(file), None)
        except BrokenTar as error:
            raise UsageError(f"{path} is no tar: {error}") from error


def _parts(file: IO[bytes]) -> Iterator[dict[str, int]]:
    """Parts of a large tar of about 64 MB each, cut where another sample begins."""
    start = end = 0
    known = None
    try:
        for member in members(file):
            key, kind = _key(member.name)
            if kind and key != known:
                if member.header - start >= _UNIT_BYTES:
                    yield {"start": start, "stop": member.header}
                    start = member.header
                known = key
            end = member.offset + member.size
    except BrokenTar:
        # Met again, and counted, by whoever reads the last part.
        end = start + 1
    if end > start:
        yield {"start": start}


def _key(name: str) -> tuple[str, str]:
    """Key and kind of a member; no kind where it belongs to no sample."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, kind = base.partition(".")
    return (folder + slash + stem, kind.lower()) if stem else ("", "")


def _json(data: bytes | None) -> Any:
    """A JSON object or list; an empty object where there is none.

    Raises:
        Refused: It is neither.
    """
    if data is None:
        return {}
    try:
        told = json.loads(_text(data))
    except (ValueError, RecursionError) as error:
        raise Refused("invalid_json", str(error)) from error
    if not isinstance(told, dict | list):
        raise Refused("invalid_json", f"expected an object or a list, got {type(told).__name__}")
    return told


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused("invalid_utf8", str(error)) from error


def _class(data: bytes) -> int:
    digits = data.strip()
    if not re.fullmatch(rb"[0-9]{1,9}", digits):
        raise Refused("invalid_class", f"expected a number, got {data[:50]!r}")
    return int(digits)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _open(path: str) -> IO[bytes]:
    try:
        return open_tar(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def expand_braces(pattern: str) -> list[str]:
    """Every path that a pattern with ``{00000..00012}`` or ``{a,b}`` stands for, as a shell would expand it.

    Raises:
        UsageError: They are more than a million, or a brace is not closed.
    """
    made = [""]
    rest = pattern
    while rest:
        head, opening, tail = rest.partition("{")
        inside, closing, rest = tail.partition("}") if opening else ("", "", "")
        if opening and (not closing or "{" in inside):
            raise UsageError(f"{pattern}: expected braces as in {{00000..00012}} or {{a,b}}")
        choices = _choices(pattern, inside) if opening else [""]
        if len(made) * len(choices) > _MOST_TARS:
            raise UsageError(f"{pattern} stands for more than {_MOST_TARS:,} files")
        made = [before + head + choice for before in made for choice in choices]
    return made


def _choices(pattern: str, inside: str) -> list[str]:
    if bounds := re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", inside):
        first, last = int(bounds[1]), int(bounds[2])
        if not 0 <= last - first < _MOST_TARS:
            raise UsageError(f"{pattern}: expected {{FIRST..LAST}} with at most {_MOST_TARS:,} numbers, upwards")
        # As a shell does: as many digits as the longer has, if either begins with a 0.
        padded = any(len(bound) > 1 and bound[0] == "0" for bound in bounds.groups())
        width = max(map(len, bounds.groups())) if padded else 0
        return [f"{number:0{width}d}" for number in range(first, last + 1)]
    if "," not in inside:
        raise UsageError(f"{pattern}: expected braces as in {{00000..00012}} or {{a,b}}")
    return inside.split(",")
