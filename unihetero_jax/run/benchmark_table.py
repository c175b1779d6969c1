"""The result of ``unihetero bench --suite`` as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GIB = 2**30
_COLUMNS = {
    "size": "size",
    "losses": "losses",
    "attention": "attention",
    "remat": "remat",
    "rows": "rows",
    "step": "step, s",
    "tokens": "tokens/s/device",
    "peak": "MFU of peak",
    "matmul": "of matmul",
    "memory": "GiB",
    "plan_step": "plan: s",
    "plan_memory": "GiB",
}


def format_suite(found: Mapping[str, Any]) -> str:
    """Format the result as a page of Markdown."""
    device, rows = found["device"], found["rows"]
    published = f"{device['peak_flops'] / 1e12:,.0f} TFLOP/s" if device["peak_flops"] else "not known"
    limit = device["memory_limit_bytes"]
    lines = [
        f"# {device['devices']} × {device['kind']}, {found['date']}",
        "",
        f"Published peak {published}; matrix products {device['matmul_flops'] / 1e12:,.3g} TFLOP/s in {device['dtype']}"
        f"{f'; memory {limit / _GIB:.1f} GiB' if limit else ''}; jax {device['jax']}. Rows of "
        f"{next((row['seq_len'] for row in rows if 'seq_len' in row), '?')} packed slots, {found['steps']} steps each, "
        f"{found.get('seconds', 0):.0f} s in all. MFU by our count of FLOPs. Memory of the compiled step per device. "
        f"The plan's time is a bound.",
        "",
        f"Input pipeline alone: {_input(found)}",
        "",
        "| " + " | ".join(_COLUMNS.values()) + " | |",
        "|---" * (len(_COLUMNS) + 1) + "|",
        *("| " + " | ".join((*_cells(row), _note(row))) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def format_row(row: Mapping[str, Any]) -> str:
    """Format a row of the result as a line of the log."""
    cells = dict(zip(_COLUMNS, _cells(row), strict=True))
    speed = f"{cells['step']} s, {cells['tokens']} tokens/s/device, {cells['memory']} GiB" if cells["step"] else ""
    where = ", ".join(cells[name] for name in ("size", "losses", "attention", "remat"))
    return f"{where}: {'; '.join(filter(None, (speed, _note(row))))} ({row['seconds']:.0f} s)"


def _input(found: Mapping[str, Any]) -> str:
    entry = found["input"]
    if "samples_per_second" not in entry:
        return ": ".join(filter(None, (entry.get("status", "not reached in time"), entry.get("note"))))
    text = f"{entry['samples_per_second']:,.0f} samples/s with images of {entry['image_size']} pixels on "
    text += f"{entry['cores']} cores"
    wanted = [row["samples_per_second"] for row in found["rows"] if "samples_per_second" in row]
    return f"{text}; the fastest row takes {max(wanted):,.0f}." if wanted else f"{text}."


def _cells(row: Mapping[str, Any]) -> list[str]:
    plan = row.get("plan") or {}
    cells = {name: str(row[name]) for name in ("size", "losses", "attention", "remat")}
    cells["rows"] = str(row.get("batch_size", ""))
    cells["memory"], cells["plan_memory"] = (
        f"{size / _GIB:.3g}" if size else "" for size in (row.get("memory_bytes"), plan.get("hbm_bytes_per_chip"))
    )
    if "step_seconds" in row:
        cells["step"] = f"{row['step_seconds']['p50']:.3g}"
        cells["tokens"] = f"{row['tokens_per_second_per_device']:,.0f}"
        for name in ("peak", "matmul"):
            cells[name] = f"{share:.1%}" if (share := row[f"mfu_of_{name}"]) else ""
    if plan:
        cells["plan_step"] = f"{plan['step_seconds']:.3g}"
    return [cells.get(name, "") for name in _COLUMNS]


def _note(row: Mapping[str, Any]) -> str:
    parts = [row["status"] if row["status"] != "measured" else "", row.get("note", "")]
    if "plan" in row and row["plan"] is None:
        parts.append("no plan for this device")
    return ": ".join(filter(None, parts)).replace("|", "\\|")
