"""``report.html`` and ``report.json`` of a study, and its claims as text; the page needs no other file."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unihetero_jax.files import write_atomic
from unihetero_jax.study import figures, training_metrics
from unihetero_jax.study.power_law import Crossing
from unihetero_jax.study.report_data import Report
from unihetero_jax.study.statistics import CONFIDENCE, Estimate, Finding
from unihetero_jax.study.workdir import Workdir

# Losses whose curves are shown, the text's first.
_LOSSES = ("text", "semantic", "codes", "pixel")
# Label and key of the cosines by position.
_POSITIONS = {
    "teacher-forced": "taught_cosine_by_position",
    "free-running": "free_cosine_by_position",
    "free-running, another image": "free_cosine_other_by_position",
}
_CLASSES = {"holds": "holds", "does not": "not", "undecided": "undecided"}
_PAGE = """<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1e293b; }}
body {{ max-width: 1100px; margin: 2rem auto; padding: 0 1.5rem; }}
h1, h2 {{ line-height: 1.2; }} h2 {{ margin-top: 2.5rem; }}
.question {{ font-size: 1.25rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ text-align: left; padding: .3rem .5rem; border-bottom: 1px solid #e2e8f0; vertical-align: top; }}
th, td {{ font-size: .9rem; }}
td.number {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
.holds {{ color: #047857; font-weight: 600; }} .not {{ color: #b91c1c; font-weight: 600; }}
.undecided {{ color: #64748b; }}
img {{ max-width: 100%; height: auto; }} pre {{ background: #f1f5f9; padding: .8rem; overflow-x: auto; }}
figure {{ margin: 1.5rem 0; }} figcaption {{ color: #64748b; font-size: .9rem; }}
</style></head><body>
{body}
</body></html>
"""


def write(report: Report, workdir: Workdir) -> list[Path]:
    """Write ``report.json`` and ``report.html``; return their paths."""
    directory = workdir.study(report.study)
    directory.mkdir(exist_ok=True)
    paths = [directory / "report.json", directory / "report.html"]
    write_atomic(paths[0], json.dumps(report.as_json(), indent=1) + "\n")
    write_atomic(paths[1], page(report))
    return paths


def text(report: Report) -> str:
    """Format the claims for the screen."""
    lines = [f"{report.study.name} at scale {report.scale}: {report.study.question}", ""]
    for found in report.findings:
        lines.append(f"  {found.verdict:<10} {_interval(found.effect):<26} {_seeds(found)}")
        lines.append(f"             {found.claim.statement}")
    lines += ["", *report.unmeasured] if report.unmeasured else []
    return "\n".join(lines)


def page(report: Report) -> str:
    """Return the report as one HTML page with its figures inside."""
    study = report.study
    body = [
        f"<h1>{_text(study.name)}</h1>",
        f"<p class=question>{_text(study.question)}</p>",
        f"<p>{_text(study.source)}. Scale <b>{report.scale}</b>. {_text(_extent(report))}</p>",
        "<h2>Claims</h2>",
        f"<p>Contrasts are taken within each seed; {CONFIDENCE:.0%} Student intervals, for each claim alone.</p>",
        _claims_table(report),
        *(f"<p class=not>{_text(sentence)}</p>" for sentence in report.unmeasured),
        _image(figures.claims(report.findings), "Effect of each claim with its interval"),
        *_parts_table(report),
        "<h2>Scores</h2>",
        _scores_table(report),
        *_scores_figure(report),
        *_curves(report),
        *_scaling(report),
        *_gradient_cosines(report),
        *_positions(report),
        *_pictures(report),
        "<h2>How to reproduce this</h2>",
        f"<pre>{_text(report.command())}</pre>",
        _table(["runs", "machine"], ([_cell(str(count)), _cell(machine)] for machine, count in report.machines())),
    ]
    return _PAGE.format(title=_text(study.name), body="\n".join(body))


def _claims_table(report: Report) -> str:
    rows = (
        [
            _cell(found.claim.statement),
            _cell(found.verdict, _CLASSES[found.verdict]),
            _cell(_interval(found.effect), "number"),
            _cell(_seeds(found)),
        ]
        for found in report.findings
    )
    return _table(["claim", "verdict", "effect", "seeds"], rows)


def _parts_table(report: Report) -> list[str]:
    names = list(dict.fromkeys(name for parts in report.parts.values() for name in parts))
    if not names:
        return []

    def cell(part: Finding | None) -> str:
        return _cell(_interval(part.effect, 3), f"number {_CLASSES[part.verdict]}") if part else _cell("–")

    split = {name: parts for name, parts in report.parts.items() if parts}
    return [
        "<h3>The same contrasts for each part of the total</h3>",
        "<p>These were not claimed beforehand; of this many intervals some exclude 0 by chance.</p>",
        _table(
            ["claim", *names],
            ([_cell(claim), *(cell(parts.get(name)) for name in names)] for claim, parts in split.items()),
        ),
    ]


def _scores_table(report: Report) -> str:
    rows = [["arm", *(figures.metric_label(metric) for metric in report.metrics), "seeds"]]
    for arm, row in report.means.items():
        means = [_mean(row.get(metric.key)) for metric in report.metrics]
        rows.append([arm, *means, str(len(report.results[arm]))])
    if len(report.metrics) > len(report.means):  # the page is higher than wide
        rows = [list(column) for column in zip(*rows, strict=True)]
        rows[0][0] = ""
    return _table(rows[0], ([_cell(name), *(_cell(cell, "number") for cell in cells)] for name, *cells in rows[1:]))


def _scores_figure(report: Report) -> list[str]:
    if not report.metrics:
        return []
    return [_image(figures.scores(report.metrics, report.means), "Mean scores of the arms with their intervals")]


def _curves(report: Report) -> list[str]:
    losses: dict[str, dict[str, list[list[tuple[float, float]]]]] = {name: {} for name in _LOSSES}
    for arm, runs in report.runs.items():
        for seed, run in runs.items():
            # In generation the prompt's text has no loss, and the loss of what is left is soon next to 0.
            generates_only = report.results[arm][seed]["config"]["data"]["mode"] == "generation"
            rows = training_metrics.rows(run / "metrics.jsonl")
            for name in _LOSSES[generates_only:]:
                if any(row.get(name) for row in rows):
                    losses[name].setdefault(arm, []).append([(row["step"], row[name]) for row in rows if name in row])
    trained = {name: arms for name, arms in losses.items() if arms}
    if not trained:
        return []
    return ["<h2>Learning curves</h2>", _image(figures.curves(trained), "Training losses over steps, mean over seeds")]


def _scaling(report: Report) -> list[str]:
    scaling = report.study.scaling
    if not report.laws or scaling is None:
        return []
    laws = (
        [
            _cell(fit.series),
            *(_cell(f"{mean:.3g} [{low:.3g}, {high:.3g}]", "number") for mean, low, high in (fit.slope, fit.scale)),
            _cell(str(fit.seeds)),
        ]
        for fit in report.laws
    )
    return [
        "<h2>Scaling</h2>",
        f"<p>error = a · size<sup>−b</sup>, error = 1 − {_text(scaling.metric)}, size in {_text(scaling.size)}; "
        f"{CONFIDENCE:.0%} Student intervals over seeds, which assume that the law holds.</p>",
        _table(["series", "b", "a", "seeds"], laws),
        "".join(f"<p>{_text(_crossing(crossing, scaling.size))}</p>" for crossing in report.crossings),
        _image(figures.scaling(report.laws, scaling.size), "Error over size, with the fitted laws"),
    ]


def _crossing(crossing: Crossing, size: str) -> str:
    where = f"{crossing.later} falls below {crossing.first} at {crossing.size:,.0f} {size}"
    if crossing.high is None:
        lower = f" (if it does, beyond {crossing.low:,.0f})" if crossing.low else ""
        return f"{where}, but may never do so{lower}."
    return f"{where} (interval {crossing.low:,.0f} to {crossing.high:,.0f})."


def _gradient_cosines(report: Report) -> list[str]:
    found = {
        arm: [training_metrics.gradient_cosines(run / "metrics.jsonl") for run in runs.values()]
        for arm, runs in report.runs.items()
    }
    measured = {arm: seeds for arm, seeds in found.items() if any(seeds)}
    if not measured:
        return []
    caption = "Cosine of the gradients of the text loss and of the visual losses, per layer, mean over seeds"
    return [
        "<h2>Gradients of the objectives</h2>",
        "<p>Below 0, a step that improves one objective makes the other worse.</p>",
        _image(figures.gradient_cosines(measured), caption),
    ]


def _positions(report: Report) -> list[str]:
    found = {
        arm: [lines for run in runs.values() if (lines := _by_position(run["evaluation"].get("generation") or {}))]
        for arm, runs in report.results.items()
    }
    measured = {arm: seeds for arm, seeds in found.items() if seeds}
    if not measured:
        return []
    caption = "Cosine of generated embeddings with the target image's, in the order of generation, mean over seeds"
    return [
        "<h2>Generation by position</h2>",
        "<p>Each embedding is predicted after the true ones (teacher-forced) or after the model's own (free-running); "
        "where errors accumulate, the two lines diverge to the right. The third line is the cosine with an image that "
        "was not asked for.</p>",
        _image(figures.position_cosines(measured), caption),
    ]


def _by_position(generation: Mapping[str, Any]) -> dict[str, list[float]]:
    return {name: generation[key] for name, key in _POSITIONS.items() if generation.get(key)}


def _pictures(report: Report) -> list[str]:
    found = []
    for arm, runs in report.runs.items():
        path = runs[min(runs)] / "samples.png"
        if path.is_file():
            found.append(_figure(path.read_bytes(), f"{arm}, seed {min(runs)}: prompts, target and generated images"))
    return ["<h2>Images</h2>", *found] if found else []


def _extent(report: Report) -> str:
    runs = sum(len(found) for found in report.results.values())
    hours = sum(run["seconds"] for found in report.results.values() for run in found.values()) / 3600
    arms = len(report.study.arms(report.scale))
    return f"{runs} runs of {len(report.results)} arms (of {arms}), {hours:.1f} hours in all."


def _interval(found: Estimate, digits: int = 4) -> str:
    if not found.count:
        return "not measured"
    if not math.isfinite(found.low):
        return f"{found.mean:+.{digits}f} (one seed)"
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def _mean(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{found.mean:.3f}" + (f" ± {found.high - found.mean:.3f}" if math.isfinite(found.high) else "")


def _seeds(found: Finding) -> str:
    count = found.effect.count
    seeds = f"{count} seed" if count == 1 else f"{count} seeds"
    return f"{seeds}; about {found.needed} would decide" if found.needed is not None else seeds


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells made by ``_cell``."""
    heads = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><tr>{heads}</tr>{body}</table>"


def _cell(content: str, css: str = "") -> str:
    return f'<td class="{css}">{_text(content)}</td>' if css else f"<td>{_text(content)}</td>"


def _image(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return _figure(buffer.getvalue(), caption)


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    label = _text(caption)
    return f'<figure><img alt="{label}" src="data:image/png;base64,{data}"><figcaption>{label}</figcaption></figure>'


def _text(words: str) -> str:
    return html.escape(words)
