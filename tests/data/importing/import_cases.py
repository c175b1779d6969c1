"""Mutated and hostile inputs of every importer, each the same for the same number; and what becomes of them.

An input is imported, and what is stored is compared with what an independent reader (csv, json, gzip, tarfile, pyarrow,
PIL) finds in the same input. The outcomes are those of `mutations`; here ``wrong`` is a sample that this reader does
not find, or any sample of an input that it cannot read.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import functools
import gzip
import io
import json
import random
import re
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from given import imported, pairs, picture, prepare, stored, turns
from mutations import mutate
from PIL import Image

from unihetero_jax.data.importers.class_folders import ClassFolderImporter
from unihetero_jax.data.importers.coco import CocoImporter
from unihetero_jax.data.importers.folder import FolderImporter
from unihetero_jax.data.importers.llava import LlavaImporter
from unihetero_jax.data.importers.tfds import TfdsImporter
from unihetero_jax.data.importers.webdataset import WebDatasetImporter
from unihetero_jax.errors import UsageError

# A sample: its image and its answer.
Samples = collections.Counter[tuple[bytes, str]]
IMAGES = 6
ROWS = [(f"{n % IMAGES}.png", f'a "picture", {n}\nof äß {"long " * (n % 5)}') for n in range(12)]
HOSTILE = (
    *(b'"', b"'", b'""', b'"\n', b"\r", b"\r\n", b"\n\n", b"\t", b",", b"\\", b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf"),
    *(b"<image>", b"{", b"}", b"[", b"]", b"null", b"NaN", b"\\ud800", b"\xe2\x80\xa8", b"../", b"/etc/hostname"),
    *(
        b"1" * 5000,
        b"[" * 700 + b"]" * 700,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"[" * 100_000,
        b"link.png",
        b"out.png",
    ),
)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Mutate bytes, or insert what is hostile, or join, or encode again."""
    kind = chance.randrange(10)
    if kind < 5:
        return mutate(data, chance)
    if kind < 8:
        place = chance.randrange(len(data) + 1)
        return data[:place] + chance.choice(HOSTILE) + data[place:]
    if kind == 8:
        return data + chance.choice((data, b"\0" * 700, b"x", b"\n\n", data[: len(data) // 2]))
    with contextlib.suppress(UnicodeError):
        return data.decode().encode(chance.choice(("utf-16", "latin-1", "utf-32", "utf-8-sig")))
    return mutate(data, chance)


def png(data: bytes) -> bool:
    """Whether PIL finds an image in which nothing is damaged."""
    try:
        Image.open(io.BytesIO(data)).verify()
    except Exception:
        return False
    return True


def sample(root: Path, name: Any, text: Any) -> Iterator[tuple[bytes, str]]:
    if not (isinstance(name, str) and isinstance(text, str)) or "\0" in name:
        return
    with contextlib.suppress(OSError, ValueError):
        file = (root / name).resolve()
        if file.is_relative_to(root.resolve()) and png(file.read_bytes()):
            text.encode()
            yield file.read_bytes(), text.strip()


def write_images(root: Path, chance: random.Random) -> None:
    root.mkdir()
    for n in range(IMAGES):
        data = picture(n, kind="PNG")
        (root / f"{n}.png").write_bytes(mutate(data, chance) if chance.random() < 0.05 else data)
    (root.parent / "secret.png").write_bytes(picture(99, kind="PNG"))
    (root / "out.png").symlink_to("../secret.png")
    (root / "link.png").symlink_to("1.png")


def read_csv(root: Path, data: bytes, delimiter: str) -> Iterator[tuple[bytes, str]]:
    text = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    csv.field_size_limit(1 << 24)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]
    if any(len(row) != len(rows[0]) for row in rows) or len(set(rows[0])) < len(rows[0]):
        raise ValueError("not a table")
    for row in rows[1:]:
        fields = dict(zip(rows[0], row, strict=True))
        with contextlib.suppress(UnicodeError):
            "".join(row).encode()
            yield from sample(root, fields.get("image"), fields.get("caption"))


def read_lines(data: bytes) -> Iterator[Any]:
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(line.removeprefix(b"\xef\xbb\xbf").decode())


def answered(root: Path, row: dict[str, Any]) -> Iterator[tuple[bytes, str]]:
    answers = row.get("answers")
    with contextlib.suppress(TypeError, statistics.StatisticsError):
        yield from sample(root, row.get("image"), statistics.mode(answers) if isinstance(answers, list) else answers)


def read_array(data: bytes) -> Iterator[Any]:
    try:
        found = json.loads(data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape"), parse_int=str)
    except (RecursionError, json.JSONDecodeError):
        found = list(read_lines(data))  # an array on each line, or damaged lines
    yield from found if isinstance(found, list) else ()


def read_parquet(root: Path, path: Path) -> Iterator[tuple[bytes, str]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    for group in range(file.num_row_groups):
        with contextlib.suppress(Exception):
            table = file.read_row_group(group)
            for n in range(len(table)):
                with contextlib.suppress(Exception):
                    (row,) = table.slice(n, 1).to_pylist()
                    yield from sample(root, row.get("image"), row.get("caption"))


def read_tar(data: bytes) -> Iterator[tuple[bytes, str]]:
    members: dict[str, dict[str, list[bytes]]] = {}
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar, contextlib.suppress(tarfile.TarError):
        for member in tar:
            key, _, kind = member.name.removeprefix("./").rpartition("/")[2].partition(".")
            folder = member.name.removeprefix("./").rpartition("/")[0]
            if member.isreg():
                content = tar.fileobj.getbuffer()[member.offset_data : member.offset_data + member.size]
                members.setdefault(f"{folder}/{key}", {}).setdefault(kind.lower(), []).append(bytes(content))
    for found in members.values():
        for image in (data for kind, own in found.items() if kind.endswith(("jpg", "png")) for data in own):
            for text in (data for kind, own in found.items() if kind.endswith("txt") for data in own):
                with contextlib.suppress(UnicodeError):
                    yield image, text.decode("utf-8-sig").strip()
            for about in found.get("json", []):
                with contextlib.suppress(ValueError, RecursionError):
                    if isinstance(caption := dict(json.loads(about.decode("utf-8-sig"))).get("caption"), str):
                        yield image, caption.strip()


def conversation(root: Path, fields: Any) -> Iterator[tuple[bytes, str]]:
    with contextlib.suppress(AttributeError, TypeError, KeyError, UnicodeError):
        said = [turn["value"] for turn in fields["conversations"] if turn["from"] in ("gpt", "assistant")]
        text = "\n".join(said)
        text.encode()
        if fields.get("image") in (None, ""):
            yield b"", text
        yield from ((image, text) for image, _ in sample(root, fields.get("image"), text))


def table_bytes(delimiter: str) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([("image", "caption", "source"), *((*row, "web") for row in ROWS)])
    return file.getvalue().encode()


def llava_records() -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for n, (name, text) in enumerate(ROWS):
        said = [{"from": "human", "value": f"<image>\nWhat is {n}?"}, {"from": "gpt", "value": text}]
        system = [{"from": "system", "value": "You see."}] if n % 3 == 0 else []
        records.append({"id": n, "image": name, "conversations": [*system, *said]})
    return records


def table_case(suffix: str, content: Callable[[], bytes], read: Callable[[Path, bytes], Iterator]) -> Callable:
    def case(place: Path, chance: random.Random) -> tuple[Any, Samples | None]:
        data = damaged(content(), chance)
        (place / f"t.{suffix}").write_bytes(data)
        root = place / "images"
        return FolderImporter(str(root), (f"{place}/t.{suffix}",)), independent(lambda: read(root, data))

    return case


def parquet_case(place: Path, chance: random.Random) -> tuple[Any, Samples | None]:
    import pyarrow
    from pyarrow import parquet

    path = place / "t.parquet"
    names, texts = zip(*ROWS, strict=True)
    how = {"compression": chance.choice(("none", "snappy")), "write_page_checksum": chance.random() < 0.5}
    parquet.write_table(pyarrow.table({"image": names, "caption": texts}), path, row_group_size=5, **how)
    path.write_bytes(damaged(path.read_bytes(), chance))
    root = place / "images"
    return FolderImporter(str(root), (str(path),)), independent(lambda: read_parquet(root, path))


def llava_case(layout: str) -> Callable:
    def case(place: Path, chance: random.Random) -> tuple[Any, Samples | None]:
        records = llava_records()
        text = json.dumps(records, indent=chance.choice((None, 1)), ensure_ascii=chance.random() < 0.5)
        lines = "".join(json.dumps(one) + "\n" for one in records)
        data = damaged((text if layout == "array" else lines).encode(), chance)
        (place / "t.json").write_bytes(data)
        root = place / "images"

        def read() -> Iterator[tuple[bytes, str]]:
            for fields in (read_array if data.lstrip(b"\xef\xbb\xbf \n\r\t").startswith(b"[") else read_lines)(data):
                yield from conversation(root, fields)

        return LlavaImporter((f"{place}/t.json",), (str(root),)), independent(read)

    return case


def coco_case(place: Path, chance: random.Random) -> tuple[Any, Samples | None]:
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(IMAGES)]
    annotations = [{"id": 5 * n, "image_id": n % IMAGES, "caption": text} for n, (_, text) in enumerate(ROWS)]
    parts = [("info", {"year": 2017}), ("images", images), ("annotations", annotations)]
    chance.shuffle(parts)
    text = json.dumps(dict(parts), indent=chance.choice((None, 1)), ensure_ascii=chance.random() < 0.5)
    data = damaged(text.encode(), chance)
    (place / "t.json").write_bytes(data)
    root = place / "images"

    def read() -> Iterator[tuple[bytes, str]]:
        text = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
        found = json.loads(text, parse_int=lambda digits: int(digits[:99]))
        files = {one["id"]: one.get("file_name") for one in found["images"] if isinstance(one, dict) and "id" in one}
        for one in found["annotations"]:
            with contextlib.suppress(AttributeError, TypeError, UnicodeError):
                yield from sample(root, files.get(one.get("image_id")), one.get("caption"))

    return CocoImporter((f"{place}/t.json",), image_roots=(str(root),)), independent(read)


def class_case(place: Path, chance: random.Random) -> tuple[Any, Samples | None]:
    expected: Samples = collections.Counter()
    root = place / "classes"
    for n, name in enumerate(("red_fox", "a <image>", "\udcff", "é", "_", "x" * 200)):
        (root / name).mkdir(parents=True)
        data = picture(n, kind="PNG")
        data = damaged(data, chance) if chance.random() < 0.3 else data
        (root / name / chance.choice(("a.png", "c.PNG", "d.txt"))).write_bytes(data)
        if png(data):
            expected[data, f"a photo of a {name.replace('_', ' ')}"] += 1
        (root / name / "out.png").symlink_to("../../secret.png")
    return ClassFolderImporter(str(root)), expected


def tar_case(compressed: bool) -> Callable:
    def case(place: Path, chance: random.Random) -> tuple[Any, Samples | None]:
        form = chance.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            name = "é" * 80 if form != tarfile.USTAR_FORMAT and chance.random() < 0.5 else ""
            for own, data in pairs(range(6), name):
                member = tarfile.TarInfo(own)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        data = file.getvalue()
        data = damaged(gzip.compress(data) if compressed else data, chance)
        (place / "t.tar").write_bytes(data)
        return WebDatasetImporter((f"{place}/t.tar",)), independent(lambda: read_tar(data))

    return case


@functools.cache
def prepared() -> dict[str, bytes]:
    """Files of a dataset that TFDS wrote."""
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "text": tfds.features.Text()}

    examples = [{"image": io.BytesIO(picture(n)), "text": f"text {n}"} for n in range(12)]
    with tempfile.TemporaryDirectory() as place:
        written = prepare(Path(place), features, {"train": examples})
        return {file.name: file.read_bytes() for file in written.iterdir()}


def tfds_case(place: Path, chance: random.Random) -> tuple[Any, Samples | None]:
    files = prepared()
    odd = chance.choice(sorted(files))
    for name, data in files.items():
        (place / name).write_bytes(damaged(data, chance) if name == odd else data)
    return TfdsImporter(str(place)), collections.Counter((picture(n), f"text {n}") for n in range(12))


def independent(read: Callable[[], Iterator[tuple[bytes, str]]]) -> Samples | None:
    """What an independent reader finds; None where it cannot read the input."""
    try:
        return collections.Counter(read())
    except Exception:
        return None


KINDS: dict[str, Callable[[Path, random.Random], tuple[Any, Samples | None]]] = {
    "csv": table_case("csv", lambda: table_bytes(","), lambda root, data: read_csv(root, data, ",")),
    "tsv": table_case("tsv", lambda: table_bytes("\t"), lambda root, data: read_csv(root, data, "\t")),
    "jsonl": table_case(
        "jsonl",
        lambda: "".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in ROWS).encode(),
        lambda root, data: (
            found
            for row in read_lines(data)
            if isinstance(row, dict)
            for found in sample(root, row.get("image"), row.get("caption"))
        ),
    ),
    "questions": table_case(
        "jsonl",
        lambda: "".join(
            json.dumps({"image": name, "question": "what?", "answers": [text, "other", text]}) + "\n"
            for name, text in ROWS
        ).encode(),
        lambda root, data: (
            found for row in read_lines(data) if isinstance(row, dict) for found in answered(root, row)
        ),
    ),
    "parquet": parquet_case,
    "array": llava_case("array"),
    "lines": llava_case("lines"),
    "coco": coco_case,
    "class_folders": class_case,
    "tar": tar_case(compressed=False),
    "tar.gz": tar_case(compressed=True),
    "tfds": tfds_case,
}


def found_in(directory: Path) -> Samples:
    """The samples that an import stored."""
    splits = {re.sub(r".*-(\w+)\.array_record-.*", r"\1", path.name) for path in directory.glob("*.array_record-*")}
    samples: Samples = collections.Counter()
    for record in (record for split in splits for record in stored(directory, split)):
        answer = "\n".join(text for speaker, text in turns(record) if speaker == "gpt")
        samples[b"".join(record["images"]), answer.replace("< image >", "<image>")] += 1
    return samples


def import_case(number: int) -> str:
    """An input of one of the kinds, through the whole import."""
    kind = list(KINDS)[number % len(KINDS)]
    chance = random.Random(number)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        place = Path(name)
        write_images(place / "images", chance)
        importer, expected = KINDS[kind](place, chance)
        try:
            manifest = imported(importer, place / "data")
        except UsageError as error:
            return "refused" if str(error) and "\n" not in str(error) else f"wrong: case {number}, {kind}: {error!r}"
        samples = found_in(place / "data")
    if expected is None:
        return f"wrong: case {number}, {kind}: stored {len(samples)} of what the other reader cannot read"
    if extra := samples - expected:
        return f"wrong: case {number}, {kind}: {len(extra)} samples that the other reader does not find"
    return "left out" if manifest.rejected else "same"
