"""What a training calls on its way: before a checkpoint is committed, and to be evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found, for the outputs of a run.

    Attributes:
      scalars: numbers by name.
      pictures: PNG files by name.
    """

    scalars: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Hooks:
    """Calls that a training makes, all in its first process.

    Attributes:
      before_commit: before a checkpoint gets its name; what it raises prevents that.
      evaluate: with the step of a checkpoint that is complete, and whether the run has just been continued from it;
        None: it had been evaluated before.
      evaluate_every: steps from one evaluation to the next; 0: none.
    """

    before_commit: Callable[[], None] = lambda: None
    evaluate: Callable[[int, bool], Evaluated | None] = lambda step, continued: None
    evaluate_every: int = 0

    def due(self, step: int) -> bool:
        """Whether a step is evaluated."""
        return bool(self.evaluate_every and step) and step % self.evaluate_every == 0


NONE = Hooks()
"""Nothing is called."""
