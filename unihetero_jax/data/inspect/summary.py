"""Format the findings about a stored dataset as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unihetero_jax.data.inspect.measure import SplitFindings, spread, visible
from unihetero_jax.data.records.record import record_images
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.data.smart_watch import Attributes
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

_NOTHING = "–"
# Characters of a turn of a printed record.
_MOST_SHOWN = 400


def numbers(dataset: Dataset, found: Mapping[str, SplitFindings], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return all measurements and the manifest as plain numbers and texts."""
    manifest = dataset.manifest
    return {
        "name": manifest.name,
        "directory": str(dataset.root),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "files": len(manifest.files),
        "arguments": dict(manifest.arguments),
        "provenance": dict(manifest.provenance),
        "rejected": dict(manifest.rejected),
        "escaped": manifest.escaped,
        "tokenizer_pieces": tokenizer.vocabulary_size if tokenizer else None,
        "splits": {name: made.as_json() for name, made in found.items()},
    }


def as_text(
    dataset: Dataset,
    found: Mapping[str, SplitFindings],
    tokenizer: Tokenizer | None,
    shown: Sequence[tuple[str, int, Mapping[str, Any]]],
) -> str:
    """Format the same as text, with a few records.

    Args:
        dataset: The dataset.
        found: Findings of every split.
        tokenizer: Tokenizer of the dataset, if it has one.
        shown: Split, number and record of each record to print.
    """
    manifest = dataset.manifest
    size = sum(entry.bytes for entry in manifest.files.values())
    shards = sum(made.shards for made in found.values())
    lines = [
        f"{manifest.name} in {dataset.root}: {sum(manifest.counts.values()):,} records in {shards:,} shards, "
        f"{len(manifest.files):,} files, {size / 1e6:,.1f} MB"
    ]
    lines += [f"made with {_pairs(manifest.arguments)}"] if manifest.arguments else []
    lines += [f"  {name}: {_short(value)}" for name, value in manifest.provenance.items() if _is_set(value)]
    if manifest.rejected:
        lines.append("rejected when it was made: " + _counts(manifest.rejected))
    if manifest.escaped:
        lines.append(f"texts with a literal <image>, which became < image >: {manifest.escaped:,}")
    lines.append(
        f"tokenizer of {tokenizer.vocabulary_size:,} pieces"
        if tokenizer
        else "no tokenizer in it, so tokens are not counted"
    )
    lines += ["", *_texts(found), "", *_images(found)]
    lines += [line for name, made in found.items() for line in _failures(name, made)]
    for split, number, record in shown:
        lines += ["", *_record(split, number, record)]
    return "\n".join(lines)


def _texts(found: Mapping[str, SplitFindings]) -> list[str]:
    columns = f"{'characters of answers':>28}{'tokens of text':>22}"
    lines = [f"{'split':<20}{'records':>12}{'shards':>8}{'MB':>10}{columns}"]
    for name, made in found.items():
        lines.append(
            f"{name:<20}{made.records:>12,}{made.shards:>8,}{made.bytes / 1e6:>10,.1f}"
            f"{_range(made.answers, 'mean'):>28}{_range(made.tokens, 'mean'):>22}"
        )
    return [*lines, "  (least, mean, most of a record, in the sample)"]


def _images(found: Mapping[str, SplitFindings]) -> list[str]:
    columns = f"{'width':>20}{'height':>20}"
    lines = [f"{'images of a sample':<20}{'records':>12}{'per record':>10}  {'formats':<30}{columns}"]
    for name, made in found.items():
        widths, heights = ([side[axis] for side in made.sides] for axis in (0, 1))
        images = f"{sum(made.images) / len(made.images):.2f}" if made.images else _NOTHING
        lines.append(
            f"{name:<20}{len(made.sampled):>12,}{images:>10}  {_formats(made):<30}"
            f"{_range(widths, 'median'):>20}{_range(heights, 'median'):>20}"
        )
    return [*lines, "  (least, median, most, in pixels)"]


def _formats(made: SplitFindings) -> str:
    total = made.formats.total()
    return ", ".join(f"{name} {count / total:.0%}" for name, count in made.formats.most_common()) or _NOTHING


def _failures(name: str, made: SplitFindings) -> list[str]:
    if not made.failures:
        return []
    total = f"{name}: {made.failures.total():,} of {len(made.sampled):,} sampled records cannot be used"
    return ["", f"{total}: {_counts(made.failures)}"] + [
        f"  {reason}: {visible(message)}" for reason, message in made.first_failures.items()
    ]


def _record(split: str, number: int, record: Mapping[str, Any]) -> list[str]:
    """Format a record of any dataset, even one with broken texts."""
    images = record_images(record) if record.keys() & {"image", "images"} else []
    sizes = ", ".join(f"{len(data):,} bytes" for data in images) or "no image"
    key = f" {_plain(record['key'])}" if "key" in record else ""
    lines = [f"{split}, record {number:,}{key} ({sizes})"]
    if attributes := _plain(record.get("attributes", b"")):
        shown = _watch(record) if "index" in record else attributes
        lines[0] += f": {_cut(visible(shown))}"
    turns = record.get("conversations", {})
    for speaker, value in zip(turns.get("from", []), turns.get("value", []), strict=False):
        lines.append(f"  {_plain(speaker):>5}: {_cut(visible(_plain(value)))}")
    return lines


def _watch(record: Mapping[str, Any]) -> str:
    """Describe the attributes of an image of Smart Watch."""
    shown = Attributes.from_json(record["attributes"])
    return (
        f"image {record['index']}, {shown.time}, {shown.weather} {shown.weather_position}, "
        f"battery {shown.battery}% {shown.battery_position}, disc RGB {shown.color}"
    )


def _plain(value: bytes | str) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}… ({len(text):,} characters)"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items() if _is_set(value))


def _is_set(value: Any) -> bool:
    """Return whether a setting is worth printing: any number, and other values unless they are empty."""
    return value not in ("", None, False, [], {}) or type(value) is int


def _short(value: Any) -> str:
    return _cut(visible(str(value)))


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in values.items())


def _range(values: Sequence[float], middle: str) -> str:
    found = spread(values)
    if found is None:
        return _NOTHING
    return f"{found['least']:,}, {found[middle]:,.{0 if middle == 'median' else 1}f}, {found['most']:,}"
