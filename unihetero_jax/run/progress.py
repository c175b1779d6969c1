"""Progress of a run, from the files in its workdir; the run may still be training."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.errors import UsageError
from unihetero_jax.train.monitor.goodput import EVENTS, Account, account, format_account, format_duration, read_events
from unihetero_jax.train.monitor.telemetry import METRICS, QUANTILES, format_quantiles

# Some rows of metrics.jsonl: the last one that ends a window has the quantiles.
_TAIL_BYTES = 1 << 18
_ENDINGS = ("complete", "stopped", "failed")


def status(workdir: str | Path) -> dict[str, Any]:
    """Step, loss, speed, checkpoints and goodput of a run.

    Args:
      workdir: the run's directory.

    Returns:
      What ``unihetero status --json`` prints.

    Raises:
      UsageError: the directory is not that of a run.
    """
    workdir = Path(workdir)
    try:
        config = json.loads((workdir / checkpoint.CONFIG).read_text(encoding="utf-8"))
        steps = int(config["train"]["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{workdir}: no readable {checkpoint.CONFIG}; expected the --workdir of a training run"
        ) from None
    found = account(read_events(workdir))
    rows = _last_rows(workdir / METRICS)
    last = rows[-1] if rows else {}
    ended = found.last.get("event") if found.last.get("event") in _ENDINGS else None
    timings = [row["timing"] for row in rows if "step_seconds_p50" in row["timing"]]
    window: dict[str, float] = timings[-1] if timings else {}
    signs = [(workdir / name).stat().st_mtime for name in (METRICS, EVENTS) if (workdir / name).exists()]
    stored = checkpoint.steps(workdir)
    return {
        "step": last.get("step", 0),
        "steps": steps,
        "loss": last.get("loss"),
        "ended": ended,
        "seconds_since_sign": max(time.time() - max(signs), 0.0) if signs else None,
        "checkpoints": stored,
        "newest_checkpoint": stored[-1] if stored else None,
        "starts": found.starts,
        "lost_steps": found.lost_steps,
        "goodput": found.goodput,
        "seconds": found.seconds,
        "wall_seconds": found.wall,
        "window": {name: value for name, value in window.items() if name != "time"},
    }


def format_status(workdir: Path, found: dict[str, Any]) -> str:
    """The result of ``status`` as text."""
    step, steps, window = found["step"], found["steps"], found["window"]
    loss = "" if found["loss"] is None else f", loss {found['loss']:.4f}"
    lines = [f"{workdir}: step {step:,} of {steps:,} ({step / steps:.1%}){loss}"]
    since = (
        "nothing yet" if found["seconds_since_sign"] is None else f"{format_duration(found['seconds_since_sign'])} ago"
    )
    lines.append(f"state        {found['ended'] or 'running, or killed'}; last update {since}")
    if window:
        speed = format_quantiles({name: window[f"step_seconds_{name}"] for name in QUANTILES})
        left = format_duration(max(steps - step, 0) * window["step_seconds_p50"])
        mfu = f", MFU {window['mfu']:.1%}" if "mfu" in window else ""
        rate = f"{window['tokens_per_second_per_device']:,.0f} tokens/s/device"
        lines.append(f"speed        step {speed} s, {rate}{mfu}; {left} to go")
    newest = found["newest_checkpoint"]
    lines.append("checkpoint   " + ("none yet" if newest is None else f"step {newest:,}"))
    if found["starts"]:
        spent = Account(found["seconds"], found["starts"], found["lost_steps"])
        lines.append(f"time         {format_account(spent)}")
    return "\n".join(lines)


def _last_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL_BYTES, 0))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the first may be cut, the last not yet whole
            continue
        if isinstance(row, dict) and {"step", "timing"} <= row.keys():
            rows.append(row)
    return rows
