"""``report.json`` and ``report.html`` of a study, from the results that there are; the page needs no other file."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unihetero_jax.errors import nearest
from unihetero_jax.files import write_atomic
from unihetero_jax.study import figures, training
from unihetero_jax.study.declaration import Metric, Scale, Study, score
from unihetero_jax.study.places import Job, Place, experiment, result
from unihetero_jax.study.scaling import Crossing, Fit, fits
from unihetero_jax.study.statistics import CONFIDENCE, Estimate, Finding, estimate, judge

REPORT_JSON, REPORT_HTML = "report.json", "report.html"

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""What runs gave, by arm and seed."""


@dataclass(frozen=True)
class Report:
    """Everything that the page and the file say."""

    study: Study
    scale: Scale
    results: Results
    runs: Mapping[str, Mapping[int, Path]]
    findings: Sequence[Finding]
    means: Mapping[str, Mapping[str, Estimate]]
    laws: Sequence[Fit] = ()
    crossings: Sequence[Crossing] = ()
    parts: Mapping[str, Mapping[str, Finding]] = field(default_factory=dict)
    """Of claims about a total, by their ids: the same contrast of each of its parts, by the metric's name."""
    scores: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)
    """What ``means`` are means of: by arm, metric's key and seed."""
    unmeasured: Sequence[str] = ()
    """Sentences about metrics of claims that no run has, though runs of all of their arms have ended."""

    @property
    def metrics(self) -> list[Metric]:
        """Those of the study that some run has."""
        return [metric for metric in self.study.metrics if any(metric.key in row for row in self.means.values())]

    def as_json(self) -> dict[str, Any]:
        """Plain values; infinite ends of intervals are None."""
        return {
            "study": self.study.name,
            "question": self.study.question,
            "source": self.study.source,
            "scale": self.scale,
            "confidence": CONFIDENCE,
            "claims": [
                {
                    "id": found.claim.id,
                    "statement": found.claim.statement,
                    "verdict": found.verdict,
                    "effect": _plain(found.effect.mean),
                    "interval": [_plain(found.effect.low), _plain(found.effect.high)],
                    "seeds": found.effect.count,
                    "seeds_that_would_decide": found.needed,
                    "metric": found.claim.metric,
                    "contrast": dict(found.claim.contrast),
                    "by_seed": {str(seed): value for seed, value in found.by_seed.items()},
                    "parts": {
                        name: _estimate_json(part.effect) for name, part in self.parts.get(found.claim.id, {}).items()
                    },
                }
                for found in self.findings
            ],
            "arms": {
                arm: {key: _estimate_json(value) | {"by_seed": self.scores[arm][key]} for key, value in row.items()}
                for arm, row in self.means.items()
            },
            "scaling": {
                "metric": self.study.scaling.metric if self.study.scaling else None,
                "laws": [vars(fit) for fit in self.laws],
                "crossings": [vars(crossing) for crossing in self.crossings],
            },
            "runs": {arm: sorted(found) for arm, found in self.results.items()},
            "machines": _machines(self.results),
            "seconds": sum(run["seconds"] for runs in self.results.values() for run in runs.values()),
            "reproduce": reproduce(self),
        }


def make(study: Study, place: Place) -> Report:
    """The report on whatever runs of a study have ended.

    Raises:
      UsageError: a result was made by a version with other defaults.
    """
    results: dict[str, dict[int, dict[str, Any]]] = {}
    runs: dict[str, dict[int, Path]] = {}
    for arm in study.arms(place.scale):
        for seed in place.seeds(experiment(study, Job(arm, 0), place)):
            config = experiment(study, Job(arm, seed), place)
            if (found := result(place, config)) is not None:
                run = place.run(config) / "run"
                found["evaluation"] |= {"training": training.summary(run / "metrics.jsonl"), "derived": _derived(found)}
                results.setdefault(arm.name, {})[seed] = found
                runs.setdefault(arm.name, {})[seed] = run
    claims = study.tested(place.scale)
    scores = {key: _scores(results, key) for key in {claim.metric for claim in claims}}
    findings = [judge(claim, scores[claim.metric]) for claim in claims]
    parts = {
        claim.id: {
            metric.name: judge(replace(claim, metric=metric.key), measured)
            for metric in _parts(study, claim.metric)
            if (measured := _scores(results, metric.key))
        }
        for claim in claims
    }
    by_key = {metric.key: _scores(results, metric.key) for metric in study.metrics}
    by_arm = {arm: {key: found[arm] for key, found in by_key.items() if arm in found} for arm in results}
    means = {arm: {key: estimate(list(found.values())) for key, found in row.items()} for arm, row in by_arm.items()}
    laws, crossings = fits(study.scaling, _scores(results, study.scaling.metric)) if study.scaling else ([], [])
    unmeasured = _unmeasured(findings, results)
    return Report(study, place.scale, results, runs, findings, means, laws, crossings, parts, by_arm, unmeasured)


def _unmeasured(findings: Sequence[Finding], results: Results) -> list[str]:
    said = []
    for found in findings:
        claim = found.claim
        ended = [run["evaluation"] for arm in claim.contrast for run in results.get(arm, {}).values()]
        if not all(results.get(arm) for arm in claim.contrast) or any(
            score(run, claim.metric) is not None for run in ended
        ):
            continue
        keys = sorted({key for run in ended for key in _numbers(run)})
        said.append(f"claim {claim.id}: no run has a score {claim.metric!r}{nearest(claim.metric, keys)}")
    return said


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield prefix + name


def _parts(study: Study, key: str) -> list[Metric]:
    """The study's metrics that a total is made of, such as those of each kind of question."""
    before, total, behind = key.rpartition(".total")
    keys = re.compile(rf"{re.escape(before)}\.\w+{re.escape(behind)}")
    return [metric for metric in study.metrics if total and metric.key != key and keys.fullmatch(metric.key)]


def _derived(found: Mapping[str, Any]) -> dict[str, Any]:
    """Scores that are made of others.

    ``kept``: by how much nearer drawn embeddings are to the true picture's than to another one's, free-running, as a
    part of the same teacher-forced; 1 where nothing is lost by going on from one's own predictions. ``last_layer``:
    what probes read off the decoder's last layer.
    """
    evaluation, made = found["evaluation"], {}
    names = ("free_cosine", "free_cosine_other", "taught_cosine", "taught_cosine_other")
    free, free_other, taught, taught_other = (score(evaluation, f"generation.{name}") for name in names)
    if free is not None and free_other is not None and taught is not None and taught_other is not None:
        made["kept"] = (free - free_other) / (taught - taught_other) if taught > taught_other else math.nan
    if layers := sorted(name for name in evaluation.get("probes", ()) if name.startswith("layer_")):
        made["last_layer"] = evaluation["probes"][layers[-1]]
    return made


def write(report: Report, place: Place) -> list[Path]:
    """Writes both files; returns where they are."""
    directory = place.own(report.study)
    directory.mkdir(exist_ok=True)
    paths = [directory / REPORT_JSON, directory / REPORT_HTML]
    write_atomic(paths[0], json.dumps(report.as_json(), indent=1) + "\n")
    write_atomic(paths[1], page(report))
    return paths


def text(report: Report) -> str:
    """The claims, for the screen."""
    lines = [f"{report.study.name} at scale {report.scale}: {report.study.question}", ""]
    for found in report.findings:
        lines.append(f"  {found.verdict:<10} {_interval(found.effect):<26} {_seeds(found)}")
        lines.append(f"             {found.claim.statement}")
    lines += ["", *report.unmeasured] if report.unmeasured else []
    return "\n".join(lines)


def reproduce(report: Report) -> str:
    """The command that makes the same results; folders of data, which only its user knows, are ``DIR``."""
    study = report.study
    seeds = max((len(runs) for runs in report.results.values()), default=1)
    sources = {
        source
        for runs in report.results.values()
        for run in runs.values()
        for source in run["config"]["data"]["sources"] or ()
    }
    data = "".join(f" --data={source}=DIR" for source in study.datasets if source in sources)
    name = shlex.quote(study.file or study.name)
    return f"unihetero study run {name} --workdir=runs/studies --scale={report.scale} --seeds={seeds}{data}"


def page(report: Report) -> str:
    """The report as one HTML page with its figures inside."""
    study = report.study
    body = [
        f"<h1>{_text(study.name)}</h1>",
        f"<p class=question>{_text(study.question)}</p>",
        f"<p>{_text(study.source)}. Scale <b>{report.scale}</b>. {_text(_extent(report))}</p>",
        "<h2>Claims</h2>",
        f"<p>Contrasts are taken within each seed; Student's intervals, {CONFIDENCE:.0%}, for each claim alone.</p>",
        _claims_table(report),
        *(f"<p class=not>{_text(sentence)}</p>" for sentence in report.unmeasured),
        _image(figures.claims(report.findings), "Effect of each claim with its interval"),
        *_parts_table(report),
        "<h2>Scores</h2>",
        _scores_table(report),
        *_scores_figure(report),
        *_curves(report),
        *_scaling(report),
        *_angles(report),
        *_positions(report),
        *_pictures(report),
        "<h2>How to get this again</h2>",
        f"<pre>{_text(reproduce(report))}</pre>",
        "<table><tr><th>runs</th><th>on</th></tr>"
        + "".join(f"<tr><td>{count}</td><td>{_text(machine)}</td></tr>" for machine, count in _machines(report.results))
        + "</table>",
    ]
    return _PAGE.format(title=_text(study.name), body="\n".join(body))


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

_CLASSES = {"holds": "holds", "does not": "not", "undecided": "undecided"}


def _claims_table(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{_text(found.claim.statement)}</td><td class={_CLASSES[found.verdict]}>{found.verdict}</td>"
        f"<td class=number>{_interval(found.effect)}</td><td>{_seeds(found)}</td></tr>"
        for found in report.findings
    )
    return f"<table><tr><th>claim</th><th>verdict</th><th>effect</th><th>seeds</th></tr>{rows}</table>"


def _parts_table(report: Report) -> list[str]:
    names = list(dict.fromkeys(name for parts in report.parts.values() for name in parts))
    if not names:
        return []
    rows = []
    for found in report.findings:
        parts = report.parts[found.claim.id]
        cells = "".join(
            f'<td class="number {_CLASSES[parts[name].verdict]}">{_interval(parts[name].effect, 3)}</td>'
            if name in parts
            else "<td>–</td>"
            for name in names
        )
        rows += [f"<tr><td>{_text(found.claim.id)}</td>{cells}</tr>"] if parts else []
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    return [
        "<h3>The same contrasts, by what the total is made of</h3>",
        "<p>Nothing was claimed of these beforehand, and of so many intervals some leave out 0 by chance.</p>",
        f"<table><tr><th>claim</th>{head}</tr>{''.join(rows)}</table>",
    ]


def _scores_table(report: Report) -> str:
    heads = [f"{metric.name} {'↑' if metric.higher_is_better else '↓'}" for metric in report.metrics]
    rows = [["arm", *heads, "seeds"]]
    for arm, row in report.means.items():
        means = [_mean(row.get(metric.key)) for metric in report.metrics]
        rows.append([arm, *means, str(len(report.results[arm]))])
    if len(report.metrics) > len(report.means):  # the page is higher than wide
        rows = [list(column) for column in zip(*rows, strict=True)]
        rows[0][0] = ""
    head = "".join(f"<th>{_text(name)}</th>" for name in rows[0])
    body = "".join(
        f"<tr><td>{_text(name)}</td>{''.join(f'<td class=number>{_text(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows[1:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _scores_figure(report: Report) -> list[str]:
    if not report.metrics:
        return []
    return [_image(figures.scores(report.metrics, report.means), "Mean scores of the arms with their intervals")]


def _scaling(report: Report) -> list[str]:
    scaling = report.study.scaling
    if not report.laws or scaling is None:
        return []
    laws = "".join(
        f"<tr><td>{_text(fit.series)}</td><td class=number>{_with_ends(fit.slope)}</td>"
        f"<td class=number>{_with_ends(fit.scale)}</td><td>{fit.seeds}</td></tr>"
        for fit in report.laws
    )
    said = "".join(f"<p>{_text(_crossing(crossing, scaling.size))}</p>" for crossing in report.crossings)
    return [
        "<h2>Scaling</h2>",
        f"<p>error = a · size<sup>−b</sup>, error = 1 − {_text(scaling.metric)}, size in {_text(scaling.size)}; "
        f"Student's intervals over seeds, {CONFIDENCE:.0%}. They take the law for granted.</p>",
        f"<table><tr><th>series</th><th>b</th><th>a</th><th>seeds</th></tr>{laws}</table>",
        said,
        _image(figures.scaling(report.laws, scaling.size), "Error over size, with the fitted laws"),
    ]


def _with_ends(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.3g} [{value[1]:.3g}, {value[2]:.3g}]"


def _crossing(crossing: Crossing, size: str) -> str:
    """Where two laws cross, in words."""
    where = f"{crossing.later} falls below {crossing.first} at {crossing.size:,.0f} {size}"
    if crossing.high is None:
        return f"{where}, but it may as well never do so" + (
            f" (if it does, beyond {crossing.low:,.0f})." if crossing.low else "."
        )
    return f"{where} (interval {crossing.low:,.0f} to {crossing.high:,.0f})."


def _angles(report: Report) -> list[str]:
    found = {
        arm: [training.angles(run / "metrics.jsonl") for run in runs.values()] for arm, runs in report.runs.items()
    }
    measured = {arm: seeds for arm, seeds in found.items() if any(seeds)}
    if not measured:
        return []
    caption = "Cosine of the gradients of the text loss and of what is drawn, on each layer, mean over seeds"
    return [
        "<h2>Gradients of the objectives</h2>",
        "<p>Below 0, what is good for the one objective is bad for the other.</p>",
        _image(figures.angles(measured), caption),
    ]


# Losses whose curves are shown, the text's first.
_CURVES = ("text", "semantic", "codes", "pixel")

# Of cosines by position: what the reader is told, and the key.
_KINDS = {
    "after true ones": "taught_cosine_by_position",
    "after its own": "free_cosine_by_position",
    "its own, another picture": "free_cosine_other_by_position",
}


def _positions(report: Report) -> list[str]:
    drawn = {
        arm: [found for run in runs.values() if (found := _by_position(run["evaluation"].get("generation") or {}))]
        for arm, runs in report.results.items()
    }
    measured = {arm: seeds for arm, seeds in drawn.items() if seeds}
    if not measured:
        return []
    caption = "Cosine of drawn embeddings with the true picture's, in the order of drawing, mean over seeds"
    return [
        "<h2>Drawing by position</h2>",
        "<p>Each embedding is predicted after the true ones before it, or after its own; an error that adds up draws "
        "the two apart to the right. Beside them, the cosine with a picture that was not asked for.</p>",
        _image(figures.positions(measured), caption),
    ]


def _by_position(generation: Mapping[str, Any]) -> dict[str, list[float]]:
    return {name: generation[key] for name, key in _KINDS.items() if generation.get(key)}


def _pictures(report: Report) -> list[str]:
    found = []
    for arm, runs in report.runs.items():
        seed = min(runs)
        path = runs[seed] / "samples.png"
        if path.is_file():
            found.append(_figure(path.read_bytes(), f"{arm}, seed {seed}: requests, true pictures, drawn ones"))
    return ["<h2>Pictures</h2>", *found] if found else []


def _curves(report: Report) -> list[str]:
    losses: dict[str, dict[str, list[list[tuple[float, float]]]]] = {name: {} for name in _CURVES}
    for arm, runs in report.runs.items():
        for seed, run in runs.items():
            # All that is text in requests to draw is told before it, and its loss is soon next to nothing.
            draws_alone = report.results[arm][seed]["config"]["data"]["mode"] == "generation"
            rows = training.rows(run / "metrics.jsonl")
            for name in _CURVES[draws_alone:]:
                if any(row.get(name) for row in rows):
                    losses[name].setdefault(arm, []).append([(row["step"], row[name]) for row in rows if name in row])
    learned = {name: arms for name, arms in losses.items() if arms}
    if not learned:
        return []
    figure = _image(figures.curves(learned), "Losses of what is learned over steps, mean over seeds")
    return ["<h2>Learning curves</h2>", figure]


def _scores(results: Results, key: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for arm, runs in results.items():
        for seed, run in runs.items():
            if (value := score(run["evaluation"], key)) is not None:
                found.setdefault(arm, {})[seed] = value
    return found


def _machines(results: Results) -> list[tuple[str, int]]:
    said = Counter(
        ", ".join(f"{name} {value}" for name, value in run["machine"].items())
        for runs in results.values()
        for run in runs.values()
    )
    return said.most_common()


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


def _image(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return _figure(buffer.getvalue(), caption)


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    label = _text(caption)
    return f'<figure><img alt="{label}" src="data:image/png;base64,{data}"><figcaption>{label}</figcaption></figure>'


def _estimate_json(found: Estimate) -> dict[str, Any]:
    return {"mean": _plain(found.mean), "interval": [_plain(found.low), _plain(found.high)], "seeds": found.count}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(words: str) -> str:
    return html.escape(words)
