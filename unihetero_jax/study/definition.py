"""What a study is: factors and their levels, the experiment of each cell, and the claims that it tests.

An *arm* is a cell of the grid: one level of each factor. A *run* is an arm with a seed. Runs with the same seed have
the same initial parameters and the same order of the data wherever their configs agree, so that arms are compared seed
by seed.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_collections

from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.train.towers.base import small_tower

Scale = Literal["tiny", "small", "paper"]
Levels = Mapping[str, str]

# Other things in a workdir are called so, or it has another meaning on the command line.
_RESERVED = ("runs", "shared", "study.json", "all")
_NAME = re.compile(r"[^\W_][\w.+-]*")


@dataclass(frozen=True)
class Arm:
    """A cell of the grid.

    Attributes:
      levels: the level of each factor.
    """

    levels: Levels

    @property
    def name(self) -> str:
        """The levels joined by dashes; also the name of the arm's directory."""
        return "-".join(self.levels.values())


@dataclass(frozen=True)
class Claim:
    """A comparison with an expected sign: a weighted sum of arms' scores is above zero.

    Attributes:
      id: unique name in the study, such as ``B1.vq_vq.answers``.
      statement: the claim as a sentence for the report.
      metric: dotted key of the score in ``eval.json``.
      contrast: weight of each arm, by the arm's name; the weights sum to 0.
      log_error: use log(1 − score) of each arm in place of its score.
    """

    id: str
    statement: str
    metric: str
    contrast: Mapping[str, float]
    log_error: bool = False


@dataclass(frozen=True)
class Metric:
    """A score that the report shows.

    Attributes:
      key: dotted key of the score in ``eval.json``.
      name: name of the score in the report.
      higher_is_better: whether a higher score is better.
    """

    key: str
    name: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Scaling:
    """Series of arms that differ in the amount of their data.

    Attributes:
      metric: dotted key of a score whose best value is 1.
      size: unit of the sizes, for the report.
      series: size of each arm, by the series' name and the arm's name.
    """

    metric: str
    size: str
    series: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Study:
    """A grid of runs, and what it tests.

    Attributes:
      name: name on the command line.
      question: the question that the study asks, a sentence.
      source: the finding that it tests.
      factors: levels of each factor, in the order of the arms' names.
      experiment: returns the config of an arm at a scale, without seed, data or weights, which the runner fills in. At
        scale ``paper`` the user gives data and weights.
      claims: the claims that are tested.
      metrics: the scores that the report shows.
      towers: small towers to train once, before the first run that uses them: as a tower of the model, or as
        ``evaluators.generation.attribute_classifier``.
      tower: returns the training config of one of these towers at a scale.
      left_out: whether to leave out the arm of these levels.
      only_at_paper: whether smaller scales leave out the arm of these levels.
      stores_features: whether frozen towers' features are computed once and shared by all runs.
      datasets: datasets that the user gives: what each is, by its name.
      weights: weights that experiments name in ``init.path`` and the user gives: what each is, by its name.
      file: path of the file that the study comes from, as the user wrote it; empty for a built-in study.
      scaling: series of arms to fit power laws to.
      scales: the scales that have experiments.

    Raises:
      ValueError: names, factors, claims or series contradict each other.
    """

    name: str
    question: str
    source: str
    factors: Mapping[str, tuple[str, ...]]
    experiment: Callable[[Levels, Scale], ml_collections.ConfigDict]
    claims: tuple[Claim, ...]
    metrics: tuple[Metric, ...]
    towers: tuple[str, ...] = ()
    tower: Callable[[str, Scale], ml_collections.ConfigDict] = lambda kind, scale: small_tower(kind)
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
            if not (isinstance(name, str) and _NAME.fullmatch(name)) or self.name in _RESERVED:
                raise ValueError(
                    f"{name!r}: expected another name: a letter or digit, then any of these and of _ . + -"
                )
        for factor, levels in self.factors.items():
            if isinstance(levels, str) or not levels:
                raise ValueError(f"study {self.name}, factor {factor}: expected a tuple of levels, got {levels!r}")
        names = list(dict.fromkeys(arm.name for arm in self.arms()))
        if len(names) < len(self.arms()) or not self.factors:
            raise ValueError(f"study {self.name}: expected factors whose arms have different names, got {names}")
        for claim in self.claims:
            if not claim.contrast:
                raise ValueError(f"study {self.name}, claim {claim.id}: expected arms in its contrast")
            self._check_arms(f"claim {claim.id}", claim.contrast, names)
            if not math.isclose(sum(claim.contrast.values()), 0.0, abs_tol=1e-9):
                raise ValueError(f"study {self.name}, claim {claim.id}: the weights of its arms do not add up to 0")
        for series in self.scaling.series.values() if self.scaling else ():
            self._check_arms("scaling", series, names)
        if len({claim.id for claim in self.claims}) < len(self.claims):
            raise ValueError(f"study {self.name}: two claims have one id")

    def _check_arms(self, place: str, used: Iterable[str], names: Iterable[str]) -> None:
        if unknown := sorted(set(used).difference(names)):
            raise ValueError(f"study {self.name}, {place}: no arm {unknown[0]!r}")

    def arms(self, scale: Scale = "paper") -> list[Arm]:
        """Return the arms of a scale, in the order of the factors."""
        grid = itertools.product(*self.factors.values())
        cells = [dict(zip(self.factors, levels, strict=True)) for levels in grid]
        gone = (self.left_out,) if scale == "paper" else (self.left_out, self.only_at_paper)
        return [Arm(levels) for levels in cells if not any(is_gone(levels) for is_gone in gone)]

    def claims_at(self, scale: Scale) -> list[Claim]:
        """Return the claims all of whose arms the scale has."""
        names = {arm.name for arm in self.arms(scale)}
        return [claim for claim in self.claims if names.issuperset(claim.contrast)]

    def arm(self, name: str) -> Arm:
        """Return the arm of a name.

        Raises:
          UsageError: no arm has the name; says the nearest.
        """
        arms = {arm.name: arm for arm in self.arms()}
        if name not in arms:
            raise UsageError(f"study {self.name} has no arm {name!r}: expected {', '.join(arms)}{nearest(name, arms)}")
        return arms[name]


def score(evaluation: Mapping[str, Any], key: str) -> float | None:
    """Return a number of ``eval.json`` by its dotted key; None where it is missing or not a finite number."""
    value: Any = evaluation
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
