"""Make some rows of the global batch, in threads of one process.

The process may be the one that trains or one of its workers (`unihetero_jax.data.packing.rows_from_workers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, TypeVarTuple

import numpy as np

from unihetero_jax.data.packing.packed_batch import PackedBatch, RowShape, fill_slots
from unihetero_jax.data.packing.row_stream import DataState, RowStream, stream_state
from unihetero_jax.data.packing.sample import plan_sample
from unihetero_jax.data.packing.slots import Role, Slots
from unihetero_jax.data.records.images import MAX_PIXELS
from unihetero_jax.data.records.invalid import FILTERED, InvalidRecord
from unihetero_jax.errors import first_line
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

# Distinguishes these random numbers from others that are seeded with a position.
_DROPOUT_STREAM = 0x5E9
# Samples of a row that are read together when it draws more than the row before.
_GROUP = 4
# Rows whose samples one thread reads before it decodes any of them.
_TOGETHER = 8


class Samples(Protocol):
    """Records by position in an endless sequence, such as a ``grain.MapDataset``; None where a filter dropped one."""

    def __getitem__(self, position: int, /) -> Mapping[str, Any] | None: ...


@dataclass(frozen=True)
class Recipe:
    """What rows are made of; the same in every process that makes some of them.

    Attributes:
        samples: Records by position, endless.
        tokenizer: Tokenizer of the model.
        tokens_per_image: Visual tokens of the tower of each role.
        shape: Shape of a row.
        batch_size: B, rows of the global batch.
        window: Samples of a row that may wait for a later one.
        input_role: Role of images in human turns.
        request_dropout: Share of the requests for an image whose text is left out; the position alone decides which.
        max_pixels: Most pixels of an image that is decoded.
    """

    samples: Samples
    tokenizer: Tokenizer
    tokens_per_image: Mapping[Role, int]
    shape: RowShape
    batch_size: int
    window: int
    input_role: Role = Role.INPUT
    request_dropout: float = 0.0
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Skip:
    """A skipped record.

    Attributes:
        position: Its position in the mixture.
        reason: The counter that it falls under, one of ``SKIP_REASONS``.
        message: Why it cannot be used.
        drawn: Samples drawn so far.
    """

    position: int
    reason: str
    message: str
    drawn: int


OnSkip = Callable[[Skip], None]


class Rows:
    """Some rows of the global batch.

    Args:
        recipe: What they are made of.
        rows: Their numbers in the global batch.
        threads: Threads that read and decode.
        state: Data state of all rows of the global batch.
        on_skip: Called for every bad record, from any of the threads; an exception stops the batch.
    """

    def __init__(self, recipe: Recipe, rows: Sequence[int], threads: int, state: DataState, on_skip: OnSkip):
        self._recipe, self._on_skip = recipe, on_skip
        self._streams = [self._open(row, state) for row in rows]
        self._threads = min(threads, len(self._streams))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="rows") if self._threads > 1 else None

    def make(self, batch: PackedBatch, indices: Sequence[int]) -> None:
        """Write the next row of each stream into rows ``indices`` of a batch."""
        rows = list(zip(self._streams, indices, strict=True))
        size = min(_TOGETHER, -(-len(rows) // self._threads))
        # Shared by the threads: each takes the next group when it is free.
        todo = iter([rows[start : start + size] for start in range(0, len(rows), size)])

        def keep_making(_: int) -> None:
            for some in todo:
                # One stage for all rows, then the next: the data of a stage stays in the processor's caches.
                for stream, _ in some:
                    stream.read_ahead()
                for stream, index in some:
                    self._make_row(stream, batch, index)

        if self._pool is None:
            keep_making(0)
        else:
            list(self._pool.map(keep_making, range(self._threads)))

    def _make_row(self, stream: RowStream, batch: PackedBatch, index: int) -> None:
        shape = self._recipe.shape
        squares = list(batch["images"][index]) if shape.pixels else []

        def decode(row: Sequence[Slots]) -> list[InvalidRecord | None]:
            if not shape.pixels:
                return [self._why_undecodable(sample) for sample in row]
            # Decoded here and not earlier: pixels take much more memory than files while a sample waits for its row.
            # They are decoded in their final place.
            first, reasons = 0, []
            for sample in row:
                reasons.append(self._decode(sample, squares[first:]))
                first += len(sample.images)
            if any(reasons):
                batch["images"][index, :first] = 0  # some images move to another place, or are gone
            return reasons

        row = stream.next_row(decode)
        fill_slots(batch, index, row, shape)

    def state(self) -> DataState:
        """Return the state of these rows, in their order."""
        return stream_state(self._streams)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _open(self, row: int, state: DataState) -> RowStream:
        size = self._recipe.batch_size

        def skip(count: int, error: InvalidRecord) -> None:
            if error.reason == FILTERED:
                return
            drawn = sum(stream.drawn for stream in self._streams)
            self._on_skip(Skip(row + count * size, error.reason, str(error), drawn))

        return RowStream(
            self._recipe.shape,
            self._recipe.window,
            fetch=lambda counts: self._fetch([row + count * size for count in counts]),
            on_skip=skip,
            drawn=int(state["drawn"][row]),
            pending=[int(count) for count in state["pending"][row] if count >= 0],
            skipped=[int(count) for count in state["skipped"][row]],
            group=_GROUP,
        )

    def _fetch(self, positions: Sequence[int]) -> list[Slots | InvalidRecord]:
        records = [_or_reason(self._record, position) for position in positions]
        return [
            record if isinstance(record, InvalidRecord) else _or_reason(self._plan, position, record)
            for position, record in zip(positions, records, strict=True)
        ]

    def _record(self, position: int) -> Mapping[str, Any]:
        try:
            record = self._recipe.samples[position]
        except InvalidRecord:
            raise
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise InvalidRecord("unreadable", f"record cannot be read: {first_line(error)}") from error
        if record is None:
            raise InvalidRecord(FILTERED, "dropped by a filter")
        return record

    def _plan(self, position: int, record: Mapping[str, Any]) -> Slots:
        recipe = self._recipe
        try:
            return plan_sample(
                record,
                recipe.tokenizer,
                recipe.tokens_per_image,
                input_role=recipe.input_role,
                drop_request=self._drops(position),
                capacity=(recipe.shape.slots, recipe.shape.images),
            )
        except InvalidRecord:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _malformed(error) from error

    def _decode(self, sample: Slots, squares: Sequence[np.ndarray]) -> InvalidRecord | None:
        try:
            sample.decode_into(squares, self._recipe.max_pixels)
        except InvalidRecord as error:
            return error
        except (AttributeError, TypeError) as error:  # an image that is not bytes
            return _malformed(error)
        return None

    def _why_undecodable(self, sample: Slots) -> InvalidRecord | None:
        """Return the error of decoding, without decoding what could be decoded when its features were computed."""
        if not sample.undecodable:
            return None
        side = self._recipe.shape.image_size
        return self._decode(sample, [np.empty((side, side, 3), np.uint8) for _ in sample.images])

    def _drops(self, position: int) -> bool:
        if not self._recipe.request_dropout:
            return False
        return np.random.default_rng([_DROPOUT_STREAM, position]).random() < self._recipe.request_dropout


_Given = TypeVarTuple("_Given")
_Made = TypeVar("_Made")


def _or_reason(make: Callable[[*_Given], _Made], *given: *_Given) -> _Made | InvalidRecord:
    """Return the result, or why there is none."""
    try:
        return make(*given)
    except InvalidRecord as error:
        return error


def _malformed(error: BaseException) -> InvalidRecord:
    what = f"{type(error).__name__}: {first_line(error)}"
    return InvalidRecord("invalid", f"expected image(s) and conversations of turns, got {what}")
