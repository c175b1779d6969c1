"""``unihetero data inspect --config``: what a run of a config learns from, in numbers and as the model sees it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unihetero_jax.config import Config
from unihetero_jax.data.inspect import pictures
from unihetero_jax.data.inspect.rows import draw_rows
from unihetero_jax.data.mixture import Mixture
from unihetero_jax.data.opening import batches, built_root, load_tokenizer, open_mixture
from unihetero_jax.data.packing.row_stream import PackedBatch
from unihetero_jax.data.packing.sample import Role
from unihetero_jax.data.records.features import Features
from unihetero_jax.data.records.invalid import SKIP_REASONS
from unihetero_jax.model.stored_features import open_features
from unihetero_jax.parallel.startup import set_up_logging
from unihetero_jax.run.train import found_from_anywhere
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

# Packing is told to half a percent or so by this many rows, of at most so many of the batch's streams.
_MEASURED_ROWS, _STREAMS = 64, 32
# Of long rows fewer, so that the picture is one that can be looked at.
_DRAWN_ROWS, _DRAWN_LONG_ROWS, _LONG = 4, 2, 1024


@dataclasses.dataclass(frozen=True)
class RowFindings:
    """Totals of packed rows.

    Attributes:
        rows: How many.
        slots: That they have.
        used: Slots that are no padding.
        visual: Of those, slots of pictures.
        text_learned: Slots of text with a weight.
        visual_learned: Slots of pictures with a weight.
        samples: Samples.
        images: Pictures.
        targets: Pictures that are predicted.
        skipped: Records that were left out, by reason.
    """

    rows: int
    slots: int
    used: int
    visual: int
    text_learned: int
    visual_learned: int
    samples: int
    images: int
    targets: int
    skipped: Mapping[str, int]


def run(config: Config, name: str, rows: Path | None, as_json: bool) -> int:
    """Prints what a config's run learns from.

    Args:
        config: Of the run.
        name: Of the config, for the picture.
        rows: The PNG file to write of a few packed rows.
        as_json: Print one JSON object instead of words.

    Returns:
        The exit code, 0.

    Raises:
        UsageError: A dataset or the tokenizer is missing or broken, the picture cannot be written, or so many records
            had to be left out that training would stop.
    """
    set_up_logging()
    config = found_from_anywhere(config)
    root = built_root(config)
    features = open_features(config, root)
    mixture = open_mixture(config, root, "train", config.train.seed, features)
    tokenizer = load_tokenizer(config, root)
    chosen = _measured_rows(config)
    made, skipped = _pack(config, mixture, tokenizer, chosen, features)
    numbers = in_numbers(config, mixture, measure_rows(made, skipped))
    print(json.dumps(numbers, indent=1) if as_json else in_words(config, numbers))
    if rows is not None:
        title = f"{name}: packed rows as the model sees them"
        count = _DRAWN_ROWS if config.data.slots <= _LONG else _DRAWN_LONG_ROWS
        names = [f"row {number} of {config.train.batch_size}" for number in chosen[:count]]
        pictures.save(draw_rows(made[0], names, tokenizer, title), rows)
        if not as_json:
            print(f"\nwrote a picture of packed rows to {rows}")
    return 0


def measure_rows(made: Sequence[PackedBatch], skipped: Mapping[str, int]) -> RowFindings:
    """Adds up what rows hold.

    Args:
        made: Packed batches.
        skipped: Records that were left out while they were made, by reason.
    """

    def total(count: Callable[[PackedBatch], Any]) -> int:
        return sum(int(count(batch)) for batch in made)

    return RowFindings(
        rows=total(lambda batch: len(batch["tokens"])),
        slots=total(lambda batch: batch["tokens"].size),
        used=total(lambda batch: (batch["segment"] > 0).sum()),
        visual=total(lambda batch: (batch["image"] >= 0).sum()),
        text_learned=total(lambda batch: (batch["text_weight"] > 0).sum()),
        visual_learned=total(lambda batch: (batch["visual_weight"] > 0).sum()),
        samples=total(lambda batch: batch["segment"].max(axis=1).sum()),
        images=total(lambda batch: (batch["role"] != Role.ABSENT).sum()),
        targets=total(lambda batch: np.isin(batch["role"], (Role.TARGET, Role.BOTH)).sum()),
        skipped=skipped,
    )


def in_numbers(config: Config, mixture: Mixture, found: RowFindings) -> dict[str, Any]:
    """What was measured, and what it says about a whole run, as plain numbers.

    Args:
        config: Of the run.
        mixture: That it learns from.
        found: Some of its rows.
    """
    samples_per_row = found.samples / found.rows
    rows = config.train.steps * config.train.batch_size
    samples = rows * samples_per_row
    return {
        "steps": config.train.steps,
        "rows_per_step": config.train.batch_size,
        "slots_per_row": config.data.slots,
        "images_per_row": config.data.images_per_row,
        "entries": {
            entry.name: {
                "records": len(entry.records),
                "share": mixture.shares[entry.name],
                "asks_for_pictures": entry.generation,
                "epochs": samples * mixture.shares[entry.name] / len(entry.records),
            }
            for entry in mixture.entries
        },
        "samples": samples,
        "tokens": rows * found.used / found.rows,
        "measured": {
            "rows": found.rows,
            "slots_used": found.used / found.slots,
            "samples_per_row": samples_per_row,
            "images_per_row": found.images / found.rows,
            "images_predicted_per_row": found.targets / found.rows,
            "tokens_per_sample": found.used / found.samples,
            "text_tokens_per_sample": (found.used - found.visual) / found.samples,
            "visual_tokens_per_sample": found.visual / found.samples,
            "text_tokens_learned": found.text_learned / max(1, found.used - found.visual),
            "visual_tokens_learned": found.visual_learned / max(1, found.visual),
            "skipped": dict(found.skipped),
        },
    }


def in_words(config: Config, numbers: Mapping[str, Any]) -> str:
    """The same for a person."""
    measured = numbers["measured"]
    data = config.data
    lines = [
        f"{data.mode}, from {', '.join(source.root for source in data.sources.values()) or data.root}",
        "",
        f"{'part of the mixture':<32}{'records':>14}{'share':>9}{'epochs':>9}   (in {numbers['steps']:,} steps)",
    ]
    lines += [
        f"{name:<32}{part['records']:>14,}{part['share']:>9.1%}{_epochs(part['epochs']):>9}"
        + ("   asks for pictures" if part["asks_for_pictures"] else "")
        for name, part in numbers["entries"].items()
    ]
    skipped = measured["skipped"]
    lines += [
        "",
        f"a run: {numbers['steps']:,} steps of {numbers['rows_per_step']:,} rows of {numbers['slots_per_row']:,} "
        f"slots, about {numbers['samples']:,.0f} samples and {numbers['tokens']:,.0f} tokens",
        "",
        f"measured in {measured['rows']:,} packed rows:",
        f"  slots used       {measured['slots_used']:.1%}",
        f"  samples a row    {measured['samples_per_row']:.2f}",
        f"  images a row     {measured['images_per_row']:.2f} of {numbers['images_per_row']}, of which "
        f"{measured['images_predicted_per_row']:.2f} are predicted",
        f"  tokens a sample  {measured['tokens_per_sample']:.1f}: {measured['text_tokens_per_sample']:.1f} of text, "
        f"{measured['visual_tokens_per_sample']:.1f} visual",
        f"  learned          {measured['text_tokens_learned']:.1%} of the text tokens, "
        f"{measured['visual_tokens_learned']:.1%} of the visual ones",
        "  skipped          " + (", ".join(f"{count:,} {reason}" for reason, count in skipped.items()) or "none"),
    ]
    return "\n".join(lines)


def _epochs(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def _measured_rows(config: Config) -> list[int]:
    """All rows of the global batch, or some of them where there are very many."""
    size = config.train.batch_size
    if size <= _STREAMS:
        return list(range(size))
    # Drawn, because rows at even distances may all meet the same parts of the mixture.
    drawn = np.random.default_rng(config.train.seed).choice(size, _STREAMS, replace=False)
    return sorted(drawn.tolist())


def _pack(
    config: Config, mixture: Mixture, tokenizer: Tokenizer, rows: list[int], features: Features | None
) -> tuple[list[PackedBatch], dict[str, int]]:
    """The first batches of these rows of a run; and what was skipped on the way, by reason."""
    # What is made ahead of the last batch is made for nothing, and so few are made before a worker has started.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, read_ahead=1, workers=-1))
    stream = batches(config, mixture, tokenizer, rows, config.train.batch_size, features=features, with_pixels=True)
    try:
        made = [batch for batch, _ in itertools.islice(stream, -(-_MEASURED_ROWS // len(rows)))]
    finally:
        stream.close()
    totals = made[-1]["skipped"].sum(axis=0).tolist()
    return made, {reason: count for reason, count in zip(SKIP_REASONS, totals, strict=True) if count}
