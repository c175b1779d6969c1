"""The training data of a config in numbers, and packed rows as pictures."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unihetero_jax.config import Config
from unihetero_jax.data.features import Features
from unihetero_jax.data.inspect import pictures
from unihetero_jax.data.inspect.rows import draw_rows
from unihetero_jax.data.mixing import Mixture
from unihetero_jax.data.packing.packed_batch import PackedBatch
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.pipeline import batches, built_root, open_mixture, open_tokenizer
from unihetero_jax.data.records.invalid import SKIP_REASONS
from unihetero_jax.model.stored_features import open_features
from unihetero_jax.parallel.startup import set_up_logging
from unihetero_jax.run.workdir import absolute_paths
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

# Enough rows to know the packing to about half a percent, from at most so many of the batch's streams.
_MEASURED_ROWS, _STREAMS = 64, 32
# Fewer long rows, so that the picture stays readable.
_DRAWN_ROWS, _DRAWN_LONG_ROWS, _LONG = 4, 2, 1024


@dataclasses.dataclass(frozen=True)
class RowFindings:
    """Totals of packed rows.

    Attributes:
        rows: Number of rows.
        slots: Their slots.
        used: Slots that are not padding.
        visual: Slots of images.
        text_learned: Slots of text whose weight is above 0.
        visual_learned: Slots of images whose weight is above 0.
        samples: Number of samples.
        images: Number of images.
        targets: Number of images that are predicted.
        skipped: Number of skipped records, by reason.
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


def inspect_mixture(
    config: Config, name: str = "config", rows: Path | None = None, as_json: bool = False
) -> dict[str, Any]:
    """Print what a config's run learns from: the share of each source, and how well rows are packed.

    Args:
        config: The run's configuration.
        name: A name of the config, for the picture's title.
        rows: A PNG file that gets a picture of a few packed rows.
        as_json: Print one JSON object instead of text.

    Returns:
        The numbers, as the JSON object has them.

    Raises:
        UsageError: A dataset or the tokenizer is missing or broken, the picture cannot be written, or so many records
            had to be left out that training would stop.
    """
    set_up_logging()
    config = absolute_paths(config)
    root = built_root(config)
    features = open_features(config, root)
    mixture = open_mixture(config, root, "train", config.train.seed, features)
    tokenizer = open_tokenizer(config, root)
    chosen = _measured_rows(config)
    made, skipped = _pack(config, mixture, tokenizer, chosen, features)
    numbers = summarize(config, mixture, measure_rows(made, skipped))
    print(json.dumps(numbers, indent=1) if as_json else format_summary(config, numbers))
    if rows is not None:
        title = f"{name}: packed rows as the model sees them"
        count = _DRAWN_ROWS if config.data.seq_len <= _LONG else _DRAWN_LONG_ROWS
        names = [f"row {number} of {config.train.batch_size}" for number in chosen[:count]]
        pictures.save(draw_rows(made[0], names, tokenizer, title), rows)
        if not as_json:
            print(f"\nwrote a picture of packed rows to {rows}")
    return numbers


def measure_rows(made: Sequence[PackedBatch], skipped: Mapping[str, int]) -> RowFindings:
    """Add up the content of packed rows.

    Args:
        made: Packed batches.
        skipped: Number of records that were skipped while they were made, by reason.
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


def summarize(config: Config, mixture: Mixture, found: RowFindings) -> dict[str, Any]:
    """Measured numbers of some rows, and what they imply for a whole run.

    Args:
        config: The run's configuration.
        mixture: The records that it learns from.
        found: Totals of some packed rows.
    """
    samples_per_row = found.samples / found.rows
    rows = config.train.steps * config.train.batch_size
    samples = rows * samples_per_row
    return {
        "steps": config.train.steps,
        "rows_per_step": config.train.batch_size,
        "slots_per_row": config.data.seq_len,
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


def format_summary(config: Config, numbers: Mapping[str, Any]) -> str:
    """The summary as text."""
    measured = numbers["measured"]
    data = config.data
    lines = [
        f"{data.mode}, from {', '.join(source.location() for source in data.sources.values()) or data.root}",
        "",
        f"{'part of the mixture':<32}{'records':>14}{'share':>9}{'epochs':>9}   (in {numbers['steps']:,} steps)",
    ]
    lines += [
        f"{name:<32}{part['records']:>14,}{part['share']:>9.1%}{_epochs(part['epochs']):>9}"
        + ("   generates images" if part["asks_for_pictures"] else "")
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
        f"  samples per row  {measured['samples_per_row']:.2f}",
        f"  images per row   {measured['images_per_row']:.2f} of {numbers['images_per_row']}, of which "
        f"{measured['images_predicted_per_row']:.2f} are predicted",
        f"  tokens/sample    {measured['tokens_per_sample']:.1f}: {measured['text_tokens_per_sample']:.1f} of text, "
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
    """The first batches of these rows of a run, and the number of records that were skipped, by reason."""
    # Batches that are read ahead would be wasted, and so few are packed before worker processes have started.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, read_ahead=1, workers=-1))
    stream = batches(config, mixture, tokenizer, rows, config.train.batch_size, features=features, with_pixels=True)
    try:
        made = [batch for batch, _ in itertools.islice(stream, -(-_MEASURED_ROWS // len(rows)))]
    finally:
        stream.close()
    totals = made[-1]["skipped"].sum(axis=0).tolist()
    return made, {reason: count for reason, count in zip(SKIP_REASONS, totals, strict=True) if count}
