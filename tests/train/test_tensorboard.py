"""What TensorBoard reads of a run."""

from __future__ import annotations

import struct
from pathlib import Path

from unihetero_jax.train.monitor.telemetry import TensorBoard


def events(workdir: Path) -> list:
    """All events of all files, in the order they were opened: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_rows_become_scalars_and_undone_ones_are_purged(tmp_path):
    row = {"loss": 2.5, "timing": {"time": 1e9, "step_seconds": 0.5}}
    first = TensorBoard(tmp_path, 0)
    for step in (1, 2, 3):
        first.write({"step": step, **row})
    first.close()
    second = TensorBoard(tmp_path, 1)
    second.write({"step": 2, **row})
    second.close()
    read = events(tmp_path)
    assert [event.file_version for event in read if event.file_version] == ["brain.Event:2"] * 2
    assert [event.step for event in read if event.session_log.status] == [1, 2]
    scalars = [(event.step, {value.tag: value.simple_value for value in event.summary.value}) for event in read]
    expected = {"loss": 2.5, "timing/step_seconds": 0.5}
    assert [found for found in scalars if found[1]] == [(step, expected) for step in (1, 2, 3, 2)]
