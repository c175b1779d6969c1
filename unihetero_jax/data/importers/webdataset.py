"""Importer of WebDataset tars: consecutive members that share a key are a sample.

The key of a member is its path up to the first dot of its base name; the rest is its kind: ``jpg``, ``jpeg``, ``png``
or ``webp`` beside ``txt`` (the caption), ``json`` (an object with a caption, as img2dataset writes it, or a list: a
document of texts and images in reading order), perhaps ``cls`` (the number of a class). Nothing is extracted: the names
are never used as paths.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from unihetero_jax.config.components import IMPORTERS
from unihetero_jax.data.ingest.captions import attribute_text, caption_record, check_prompts, prompts_option
from unihetero_jax.data.ingest.importer import UNIT_BYTES, Importer, Refused, Rejected, attempt, escape, names, option
from unihetero_jax.data.ingest.inputs import MOST_TEXT_BYTES, decode_text, expand, file_size, file_sizes
from unihetero_jax.data.ingest.json_stream import parse
from unihetero_jax.data.ingest.phrases import read_lines
from unihetero_jax.data.ingest.tar import BrokenTar, Member, is_compressed, members, open_tar, read_member, verify_gzip
from unihetero_jax.data.records.record import IMAGE_TOKEN, Record, Turn
from unihetero_jax.errors import UsageError

IMAGE_KINDS = frozenset(("jpg", "jpeg", "png", "webp"))
_TEXT_KINDS = frozenset(("txt", "json", "cls"))
# What may stand before the kind, as in ``image.png``, ``0.jpg`` and ``caption.txt``; others, as ``seg``, are not it.
_IMAGE_FIELD, _TEXT_FIELD = (re.compile(rf"(?:{names}|[0-9]+)\.") for names in ("image|img|input", "caption|text"))
# Finding the members of every tar before the work begins would take long; tars of usual size are one unit each.
_WHOLE_TAR_BYTES = 4 * UNIT_BYTES
_MOST_TARS = 1_000_000


@IMPORTERS.register("webdataset")
@dataclasses.dataclass(frozen=True)
class WebDatasetImporter(Importer):
    """Tars of images and texts.

    Attributes:
        tars: Paths or patterns: ``{00000..00012}`` and ``{a,b}`` are expanded, and so are ``*`` and ``?``.
        caption_key: Key of the caption in the JSON object, where there is no ``txt``.
        attributes: Keys of the JSON object to store with the record, beside ``cls``.
        class_names: Names of the classes from 0 on, each the caption of samples of the class that have no other.
        prompts: Phrases that ask for a caption; a record's key decides which it gets.

    Raises:
        UsageError: An option is impossible.
    """

    name = "webdataset"
    summary = "tars of images and texts, as img2dataset makes them"
    examples = """
  unihetero data import webdataset 'cc3m/{00000..00331}.tar' --out=data/cc3m --resize=256 --drop_duplicates
  unihetero data import webdataset pairs/*.tar --caption_key=text --attributes=url,similarity --out=data/pairs"""

    tars: Sequence[str] = option(
        metavar="TAR", help="paths or quoted patterns, such as 'data/{00000..00127}.tar'", positional=True, many=True
    )
    caption_key: str = option(
        "caption", metavar="KEY", help="key of the caption in the json, where there is no txt (default: caption)"
    )
    attributes: Sequence[str] = option(
        (), metavar="A,B", help="keys of the json to store with the record (default: none)", parse=names
    )
    class_names: Sequence[str] = option(
        (),
        metavar="FILE",
        help="names of the classes, one per line, as captions of samples that have a cls and no other caption",
        exists="file",
        parse=read_lines,
    )
    prompts: Sequence[str] = prompts_option()

    def __post_init__(self) -> None:
        if not self.tars:
            raise UsageError("no tars: expected at least one path or pattern, such as 'data/{00000..00012}.tar'")
        check_prompts(self.prompts)

    def provenance(self) -> Mapping[str, Any]:
        """Return JSON of the options, and the tars with their sizes."""
        return {**dataclasses.asdict(self), "tars": file_sizes(self._paths())}

    def units(self) -> Sequence[Mapping[str, Any]]:
        """Return the tars, large ones in parts.

        Raises:
            UsageError: There is no such tar, or the first file is not a tar.
        """
        units: list[dict[str, Any]] = []
        for path in self._paths():
            if not units:
                _check_tar(path)
            # A compressed tar can only be read from its start.
            if file_size(path) <= _WHOLE_TAR_BYTES or is_compressed(path):
                units.append({"tar": path})
            else:
                with _open(path) as file:
                    units += [{"tar": path, **part} for part in _parts(file)]
        return units

    def records(self, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        """Yield the records of a tar or a part of one, in the order of their first members."""
        stem = Path(unit["tar"]).name.split(".", 1)[0]
        with _open(unit["tar"]) as file:
            max_bytes = self.max_bytes(unit)
            sample = _Sample("", max_bytes)
            try:
                if is_compressed(unit["tar"]):
                    verify_gzip(unit["tar"])
                for member in members(file, unit.get("start", 0), unit.get("stop")):
                    key, kind = _key(member.name)
                    if not kind:
                        continue
                    if key != sample.key:
                        yield from self._finish(stem, sample)
                        sample = _Sample(key, max_bytes)
                    sample.add(file, member, kind)
            except BrokenTar as error:
                # The sample being read may lack members that cannot be read any more.
                yield Rejected(f"{stem}/{sample.key}", "broken_tar", str(error))
                return
            yield from self._finish(stem, sample)

    def _paths(self) -> list[str]:
        """Return the paths of the tars, each once.

        Raises:
            UsageError: A pattern has no match.
        """
        paths: dict[str, None] = {}
        for pattern in self.tars:
            for expanded in expand_braces(pattern):
                found = expand(expanded)
                if not found:
                    raise UsageError(f"{expanded}: no such file")
                paths |= dict.fromkeys(found)
        return list(paths)

    def _finish(self, stem: str, sample: _Sample) -> Iterator[Record | Rejected]:
        if sample.members:
            key = f"{stem}/{sample.key}"
            yield attempt(key, self._record, key, sample)

    def _record(self, key: str, sample: _Sample) -> Record:
        if sample.refused is not None:
            raise sample.refused
        content = parse(sample.content["json"]) if "json" in sample.content else {}
        if isinstance(content, list):
            return _document(key, content, sample)
        if not isinstance(content, dict):
            raise Refused("invalid_json", f"expected an object or a list, got {type(content).__name__}")
        images = sample.fields(IMAGE_KINDS, _IMAGE_FIELD)
        if len(images) != 1:
            reason = "several_images" if images else "missing_image"
            expected = "one of jpg, jpeg, png, webp, or as image.png or 0.jpg"
            raise Refused(reason, f"{len(images)} images in {', '.join(sorted(sample.members))}; expected {expected}")
        known: dict[str, Any] = {name: content[name] for name in self.attributes if name in content}
        if "cls" in sample.content:
            known["cls"] = _class(sample.content["cls"])
        caption = self._caption(sample, content, known.get("cls"))
        return caption_record(key, images[0], caption, self.prompts, attribute_text(known))

    def _caption(self, sample: _Sample, content: Mapping[str, Any], number: int | None) -> str:
        if texts := sample.fields(frozenset({"txt"}), _TEXT_FIELD):
            if len(texts) > 1:
                raise Refused("several_texts", f"{', '.join(sorted(sample.members))}; expected one txt")
            return decode_text(texts[0])
        caption = content.get(self.caption_key)
        if isinstance(caption, str):
            return caption
        if number is not None and number < len(self.class_names):
            return self.class_names[number]
        raise Refused("missing_text", f"no txt, and no {self.caption_key!r} in a json")


class _Sample:
    """The members of one key: their content as far as it is read, and why they cannot be a record."""

    def __init__(self, key: str, max_bytes: int):
        self.key = key
        self.members: dict[str, Member] = {}
        self.content: dict[str, bytes] = {}
        self.refused: Refused | None = None
        self._left = max_bytes

    def add(self, file: IO[bytes], member: Member, kind: str) -> None:
        """Read a member, if its kind is used and nothing is wrong with the sample yet.

        Raises:
            BrokenTar: The member is truncated.
        """
        if kind in self.members:
            self.refused = self.refused or Refused("repeated_member", f"{member.name!r} is there twice")
        self.members[kind] = member
        last = kind.rpartition(".")[2]
        is_text = kind in _TEXT_KINDS or last == "txt"
        if self.refused is not None or not (is_text or last in IMAGE_KINDS):
            return
        self._left -= member.size
        if self._left < 0 or (is_text and member.size > MOST_TEXT_BYTES):
            self.refused = Refused("member_too_large", f"{member.name!r} has {member.size:,} bytes")
            self.content = {}
            return
        self.content[kind] = read_member(file, member)

    def fields(self, kinds: frozenset[str], named: re.Pattern[str]) -> list[bytes]:
        """Return the members of some kinds; where there are none, those with a usual name before the kind."""
        exact = sorted(kinds & set(self.content))
        other = sorted(kind for kind in self.content if (found := named.match(kind)) and kind[found.end() :] in kinds)
        return [self.content[kind] for kind in exact or other]

    def image(self, name: str, words: bool = False) -> bytes | None:
        """Return the image of that name: its whole name, its base name, or what follows the key.

        Args:
            name: The name.
            words: Whether the name may be someone's text, in which ``png`` is just a word.
        """
        for kind, member in self.members.items():
            if kind in self.content and kind.rpartition(".")[2] in IMAGE_KINDS:
                own = {member.name, member.name.removeprefix("./"), member.name.rpartition("/")[2]}
                if name in own or (name.lower() == kind and not (words and kind in IMAGE_KINDS)):
                    return self.content[kind]
        return None


def _document(key: str, content: Sequence[Any], sample: _Sample) -> Record:
    """Make a record with one gpt turn from a list of texts and names of images, in reading order.

    Raises:
        Refused: The list is malformed or empty, or one of its images is missing.
    """
    parts: list[str] = []
    images: list[bytes] = []
    for part in content:
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
        raise Refused("empty_text", "an empty document")
    return Record(key, tuple(images), (Turn("gpt", text),), "interleaved")


def _check_tar(path: str) -> None:
    """Refuse a file that is not a tar at once, rather than every record after an hour."""
    with _open(path) as file:
        try:
            next(members(file), None)
        except BrokenTar as error:
            raise UsageError(f"{path} is no tar: {error}") from error


def _parts(file: IO[bytes]) -> Iterator[dict[str, int]]:
    """Yield parts of a large tar, about 64 MB each, that begin with a sample."""
    start = end = 0
    known = None
    try:
        for member in members(file):
            key, kind = _key(member.name)
            if kind and key != known:
                if member.header - start >= UNIT_BYTES:
                    yield {"start": start, "stop": member.header}
                    start = member.header
                known = key
            end = member.offset + member.size
    except BrokenTar:
        # Counted by the reader of the last part.
        end = start + 1
    if end > start:
        yield {"start": start}


def _key(name: str) -> tuple[str, str]:
    """Return key and kind of a member; the kind is empty where it belongs to no sample."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, kind = base.partition(".")
    return (folder + slash + stem, kind.lower()) if stem else ("", "")


def _class(data: bytes) -> int:
    digits = data.strip()
    if not re.fullmatch(rb"[0-9]{1,9}", digits):
        raise Refused("invalid_class", f"expected a number, got {data[:50]!r}")
    return int(digits)


def _open(path: str) -> IO[bytes]:
    try:
        return open_tar(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def expand_braces(pattern: str) -> list[str]:
    """Return every path that a pattern with ``{00000..00012}`` or ``{a,b}`` stands for, as a shell would expand it.

    Raises:
        UsageError: There are more than a million, or a brace is not closed.
    """
    paths = [""]
    rest = pattern
    while rest:
        head, opening, tail = rest.partition("{")
        inside, closing, rest = tail.partition("}") if opening else ("", "", "")
        if opening and (not closing or "{" in inside):
            raise UsageError(f"{pattern}: expected braces as in {{00000..00012}} or {{a,b}}")
        choices = _choices(pattern, inside) if opening else [""]
        if len(paths) * len(choices) > _MOST_TARS:
            raise UsageError(f"{pattern} stands for more than {_MOST_TARS:,} files")
        paths = [before + head + choice for before in paths for choice in choices]
    return paths


def _choices(pattern: str, inside: str) -> list[str]:
    if bounds := re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", inside):
        first, last = int(bounds[1]), int(bounds[2])
        if not 0 <= last - first < _MOST_TARS:
            raise UsageError(f"{pattern}: expected {{FIRST..LAST}} with at most {_MOST_TARS:,} numbers, upwards")
        # As in a shell, zero-padded to the longer one if either begins with a 0.
        padded = any(len(bound) > 1 and bound[0] == "0" for bound in bounds.groups())
        width = max(map(len, bounds.groups())) if padded else 0
        return [f"{number:0{width}d}" for number in range(first, last + 1)]
    if "," not in inside:
        raise UsageError(f"{pattern}: expected braces as in {{00000..00012}} or {{a,b}}")
    return inside.split(",")
