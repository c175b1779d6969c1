"""What a study is: factors and their levels, the experiment of each cell, and the claims that it tests.

An *arm* is a cell of the grid: one level of each factor. A *run* is an arm with a seed. Runs with the same seed have
the same initial parameters and the same order of the data wherever their configs agree, so that arms are compared seed
by seed.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_collections

from unihetero_jax.config.presets import SmallTower, small_tower
from unihetero_jax.errors import UsageError, nearest

Scale = Literal["tiny", "small", "paper"]
Levels = Mapping[str, str]

RESERVED = ("runs", "shared", "study.json", "all")
"""What no study is called: other things in a workdir are, or mean something else on the command line."""

_NAME = re.compile(r"[^\W_][\w.+-]*")


@dataclass(frozen=True)
class Arm:
    """A cell of the grid."""

    levels: Levels

    @property
    def name(self) -> str:
        """The levels, with dashes between them: also the name of the arm's directory."""
        return "-".join(self.levels.values())


@dataclass(frozen=True)
class Claim:
    """A comparison with an expected sign: that a weighted sum of arms' scores is above zero.

    Args:
      id: unique in the study, such as ``B1.vq_vq.answers``.
      statement: in words, for the report.
      metric: dotted key of the score in ``eval.json``.
      contrast: weight of each arm, by its name; they add up to 0.
      log_error: take log(1 − score) of each arm, and not its score.
    """

    id: str
    statement: str
    metric: str
    contrast: Mapping[str, float]
    log_error: bool = False


@dataclass(frozen=True)
class Metric:
    """A score of ``eval.json`` that the report shows: its dotted key, its name, and whether more of it is better."""

    key: str
    name: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Scaling:
    """Series of arms that differ in how much they learn from.

    ``metric``: dotted key of a score whose best is 1. ``size``: what the sizes are, in words. ``series``: name → arm →
    size.
    """

    metric: str
    size: str
    series: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Study:
    """A grid of runs.

    Args:
      name: on the command line.
      question: what it asks, a sentence.
      source: whose finding it tests.
      factors: name → levels, in the order of the arms' names.
      experiment: the config of an arm at a scale, without seed, data or weights, which the runner fills in. At scale
        ``paper`` the user says where data and weights are.
      claims: what it tests.
      metrics: what its report shows.
      towers: small towers that are trained once, before the first run that uses them: where an arm has one, or reads
        drawn watches by one that it names in ``evaluators.generation.attribute_classifier``.
      tower: the training of one of them at a scale.
      left_out: arms that there are not, by their levels.
      only_at_paper: arms that smaller scales do without, by their levels.
      stores_features: what frozen towers make of the data is computed once, and shared by all runs.
      scaling: series of arms to which power laws are fitted.
      scales: at which there are experiments.
      datasets: names of the datasets that the user gives, and what they are, in words for a message.
      weights: of weights that experiments name in ``init.path`` and the user gives, the same.
      file: the one that the study was read from, as the user named it; empty for ours.
    """

    name: str
    question: str
    source: str
    factors: Mapping[str, tuple[str, ...]]
    experiment: Callable[[Levels, Scale], ml_collections.ConfigDict]
    claims: tuple[Claim, ...]
    metrics: tuple[Metric, ...]
    towers: tuple[SmallTower, ...] = ()
    tower: Callable[[SmallTower, Scale], ml_collections.ConfigDict] = lambda kind, scale: small_tower(kind)
    left_out: Callable[[Levels], bool] = field(default=lambda levels: False)
    only_at_paper: Callable[[Levels], bool] = field(default=lambda levels: False)
    stores_features: bool = True
    datasets: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    file: str = ""
    scaling: Scaling | None = None
    scales: tuple[Scale, ...] = ("tiny", "small", "paper")

    def __post_init__(self) -> None:
        # Names of studies and levels become those of directories in a workdir that studies share.
        for name in (self.name, *itertools.chain(*self.factors.values())):
            if not (isinstance(name, str) and _NAME.fullmatch(name)) or self.name in RESERVED:
                raise ValueError(
                    f"{name!r}: expected another name: a letter or digit, then any of these and of _ . + -"
                )
        for factor, levels in self.factors.items():
            if isinstance(levels, str) or not levels:
                raise ValueError(f"study {self.name}, factor {factor}: expected a tuple of levels, got {levels!r}")
        names = {arm.name: arm for arm in self.arms()}
        if len(names) < len(self.arms()) or not self.factors:
            raise ValueError(f"study {self.name}: expected factors whose arms have names of their own, got {[*names]}")
        for claim in self.claims:
            if not claim.contrast:
                raise ValueError(f"study {self.name}, claim {claim.id}: expected arms in its contrast")
            if unknown := sorted(set(claim.contrast) - set(names)):
                raise ValueError(f"study {self.name}, claim {claim.id}: no arm {unknown[0]!r}")
            if not math.isclose(sum(claim.contrast.values()), 0.0, abs_tol=1e-9):
                raise ValueError(f"study {self.name}, claim {claim.id}: the weights of its arms do not add up to 0")
        for series in self.scaling.series.values() if self.scaling else ():
            if unknown := sorted(set(series) - set(names)):
                raise ValueError(f"study {self.name}, scaling: no arm {unknown[0]!r}")
        if len({claim.id for claim in self.claims}) < len(self.claims):
            raise ValueError(f"study {self.name}: two claims have one id")

    def arms(self, scale: Scale = "paper") -> list[Arm]:
        """All cells of the grid that there are at a scale, in the order of the factors."""
        grid = itertools.product(*self.factors.values())
        cells = [dict(zip(self.factors, levels, strict=True)) for levels in grid]
        gone = (self.left_out,) if scale == "paper" else (self.left_out, self.only_at_paper)
        return [Arm(levels) for levels in cells if not any(is_gone(levels) for is_gone in gone)]

    def tested(self, scale: Scale) -> list[Claim]:
        """The claims about arms that there are at a scale."""
        names = {arm.name for arm in self.arms(scale)}
        return [claim for claim in self.claims if names.issuperset(claim.contrast)]

    def arm(self, name: str) -> Arm:
        """The arm of a name.

        Raises:
          UsageError: there is none; names the nearest.
        """
        arms = {arm.name: arm for arm in self.arms()}
        if name not in arms:
            raise UsageError(f"study {self.name} has no arm {name!r}: expected {', '.join(arms)}{nearest(name, arms)}")
        return arms[name]


def score(evaluation: Mapping[str, Any], key: str) -> float | None:
    """A number of ``eval.json`` by its dotted key; None where it was not measured, or is no number."""
    value: Any = evaluation
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
