"""The content of a study's report, from the results of its runs: findings, means, power laws; and ``report.json``."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unihetero_jax.errors import nearest
from unihetero_jax.study import training_metrics
from unihetero_jax.study.definition import Claim, Metric, Scale, Study, score
from unihetero_jax.study.power_law import Crossing, Fit, fits
from unihetero_jax.study.run_config import Run, run_config
from unihetero_jax.study.statistics import CONFIDENCE, Estimate, Finding, estimate, judge
from unihetero_jax.study.workdir import Workdir

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Results of runs, by arm and seed."""


@dataclass(frozen=True)
class Report:
    """The content of a study's report.

    Attributes:
      study: the study.
      scale: the scale of its runs.
      results: results of the runs that have ended, by arm and seed.
      runs: directories of these runs, by arm and seed.
      findings: the result of testing each claim.
      means: mean of each metric over seeds, by arm and the metric's key.
      laws: power laws of the study's series.
      crossings: where these laws cross.
      parts: for claims about a total, by the claim's id: the same contrast of each part, by the metric's name.
      scores: the scores that ``means`` are means of, by arm, metric's key and seed.
      unmeasured: sentences about metrics of claims that no run has, though runs of all of their arms have ended.
    """

    study: Study
    scale: Scale
    results: Results
    runs: Mapping[str, Mapping[int, Path]]
    findings: Sequence[Finding]
    means: Mapping[str, Mapping[str, Estimate]]
    laws: Sequence[Fit] = ()
    crossings: Sequence[Crossing] = ()
    parts: Mapping[str, Mapping[str, Finding]] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)
    unmeasured: Sequence[str] = ()

    @property
    def metrics(self) -> list[Metric]:
        """The study's metrics that some run has."""
        return [metric for metric in self.study.metrics if any(metric.key in row for row in self.means.values())]

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``report.json``; infinite ends of intervals are None."""
        return {
            "study": self.study.name,
            "question": self.study.question,
            "source": self.study.source,
            "scale": self.scale,
            "confidence": CONFIDENCE,
            "claims": [self._claim_json(found) for found in self.findings],
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
            "machines": self.machines(),
            "seconds": sum(run["seconds"] for runs in self.results.values() for run in runs.values()),
            "reproduce": self.command(),
        }

    def _claim_json(self, found: Finding) -> dict[str, Any]:
        effect = _estimate_json(found.effect)
        parts = self.parts.get(found.claim.id, {})
        return {
            "id": found.claim.id,
            "statement": found.claim.statement,
            "verdict": found.verdict,
            "effect": effect["mean"],
            "interval": effect["interval"],
            "seeds": effect["seeds"],
            "seeds_that_would_decide": found.needed,
            "metric": found.claim.metric,
            "contrast": dict(found.claim.contrast),
            "by_seed": {str(seed): value for seed, value in found.by_seed.items()},
            "parts": {name: _estimate_json(part.effect) for name, part in parts.items()},
        }

    def machines(self) -> list[tuple[str, int]]:
        """Return descriptions of the machines, with the number of runs on each."""
        runs = (run for found in self.results.values() for run in found.values())
        return Counter(
            ", ".join(f"{name} {value}" for name, value in run["machine"].items()) for run in runs
        ).most_common()

    def command(self) -> str:
        """Return the command that reproduces the results, with ``DIR`` for directories that only its user knows."""
        seeds = max((len(runs) for runs in self.results.values()), default=1)
        configs = [run["config"] for runs in self.results.values() for run in runs.values()]
        sources = {source for config in configs for source in config["data"]["sources"] or ()}
        data = "".join(f" --data={source}=DIR" for source in self.study.datasets if source in sources)
        name = shlex.quote(self.study.file or self.study.name)
        return f"unihetero study run {name} --workdir=runs/studies --scale={self.scale} --seeds={seeds}{data}"


def make_report(study: Study, workdir: Workdir) -> Report:
    """Build the report of the runs of a study that have ended.

    Raises:
      UsageError: a version with other defaults made a result, or a result is damaged.
    """
    results, runs = _read_results(study, workdir)
    claims = study.claims_at(workdir.scale)
    findings = [judge(claim, metric_scores(results, claim.metric)) for claim in claims]
    by_key = {metric.key: metric_scores(results, metric.key) for metric in study.metrics}
    by_arm = {arm: {key: found[arm] for key, found in by_key.items() if arm in found} for arm in results}
    means = {arm: {key: estimate(list(found.values())) for key, found in row.items()} for arm, row in by_arm.items()}
    scaling = study.scaling
    laws, crossings = fits(scaling, metric_scores(results, scaling.metric)) if scaling else ([], [])
    return Report(
        study,
        workdir.scale,
        results,
        runs,
        findings,
        means,
        laws,
        crossings,
        parts={claim.id: _judge_parts(study, claim, by_key) for claim in claims},
        scores=by_arm,
        unmeasured=[sentence for claim in claims if (sentence := _unmeasured(claim, results))],
    )


def metric_scores(results: Results, key: str) -> dict[str, dict[int, float]]:
    """Return the scores of a metric by arm and seed, without arms that have none."""
    found = {
        arm: {seed: value for seed, run in runs.items() if (value := score(run["evaluation"], key)) is not None}
        for arm, runs in results.items()
    }
    return {arm: by_seed for arm, by_seed in found.items() if by_seed}


def _read_results(
    study: Study, workdir: Workdir
) -> tuple[dict[str, dict[int, dict[str, Any]]], dict[str, dict[int, Path]]]:
    """Return results and directories of the runs that have ended, by arm and seed."""
    results: dict[str, dict[int, dict[str, Any]]] = {}
    runs: dict[str, dict[int, Path]] = {}
    for arm in study.arms(workdir.scale):
        for seed in workdir.seeds(run_config(study, Run(arm, 0), workdir)):
            config = run_config(study, Run(arm, seed), workdir)
            if (found := workdir.result(config)) is not None:
                run = workdir.run(config) / "run"
                evaluation = found["evaluation"]
                evaluation |= {"training": training_metrics.summary(run / "metrics.jsonl")}
                evaluation |= {"derived": _derived_scores(evaluation)}
                results.setdefault(arm.name, {})[seed] = found
                runs.setdefault(arm.name, {})[seed] = run
    return results, runs


def _derived_scores(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return scores computed from others.

    ``kept`` compares generated embeddings with the target image's and with another image's: the difference of the two
    cosines, free-running, as a share of the same difference, teacher-forced. It is 1 where nothing is lost by
    continuing from one's own predictions. ``last_layer`` has the scores of probes of the decoder's last layer.
    """
    found: dict[str, Any] = {}
    names = ("free_cosine", "free_cosine_other", "taught_cosine", "taught_cosine_other")
    free, free_other, forced, forced_other = (score(evaluation, f"generation.{name}") for name in names)
    if free is not None and free_other is not None and forced is not None and forced_other is not None:
        found["kept"] = (free - free_other) / (forced - forced_other) if forced > forced_other else math.nan
    if layers := sorted(name for name in evaluation.get("probes", ()) if name.startswith("layer_")):
        found["last_layer"] = evaluation["probes"][layers[-1]]
    return found


def _judge_parts(
    study: Study, claim: Claim, by_key: Mapping[str, Mapping[str, Mapping[int, float]]]
) -> dict[str, Finding]:
    """Test a claim about a total for the metrics that the total is made of, such as each kind of question."""
    before, total, behind = claim.metric.rpartition(".total")
    keys = re.compile(rf"{re.escape(before)}\.\w+{re.escape(behind)}")
    return {
        metric.name: judge(replace(claim, metric=metric.key), by_key[metric.key])
        for metric in study.metrics
        if total and metric.key != claim.metric and keys.fullmatch(metric.key) and by_key[metric.key]
    }


def _unmeasured(claim: Claim, results: Results) -> str | None:
    """Return a sentence about a metric that no run has, once runs of all arms of its claim have ended."""
    ended = [run["evaluation"] for arm in claim.contrast for run in results.get(arm, {}).values()]
    complete = all(results.get(arm) for arm in claim.contrast)
    if not complete or any(score(run, claim.metric) is not None for run in ended):
        return None
    keys = sorted({key for run in ended for key in _number_keys(run)})
    return f"claim {claim.id}: no run has a score {claim.metric!r}{nearest(claim.metric, keys)}"


def _number_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _number_keys(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield prefix + name


def _estimate_json(found: Estimate) -> dict[str, Any]:
    mean, low, high = (value if math.isfinite(value) else None for value in (found.mean, found.low, found.high))
    return {"mean": mean, "interval": [low, high], "seeds": found.count}
